//! Where the built binaries are: what `make build` left beside the test binary, or SAMPAN_BIN_DIR.

use std::path::PathBuf;

/// The path of `sampand`, `sampan` or `sampan-runtime`.
///
/// # Panics
/// When it has not been built: a test of something that is not there must not pass.
pub fn binary(name: &str) -> PathBuf {
    let path = directory().join(name);
    assert!(path.is_file(), "{} is missing: run `make build`, or set SAMPAN_BIN_DIR", path.display());
    path
}

/// `target/TRIPLE/PROFILE`: tests run from its `deps`, programs from itself.
fn directory() -> PathBuf {
    if let Some(directory) = std::env::var_os("SAMPAN_BIN_DIR") {
        return directory.into();
    }
    let this = std::env::current_exe().expect("path of this program");
    let directory = this.parent().expect("a program lies in a directory");
    if directory.ends_with("deps") {
        directory.parent().expect("deps lies in a profile").into()
    } else {
        directory.into()
    }
}
