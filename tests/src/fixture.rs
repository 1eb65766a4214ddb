//! The registry that all tests of a process pull from: Debian's, on loopback, full of images made from Debian packages.
//!
//! Images and the registry's storage are kept between runs in the cache directory of `images/make-images.sh`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock};

/// A running registry.
#[derive(Debug)]
pub struct Fixture {
    address: String,
    images: PathBuf,
    directory: PathBuf,
}

static SHARED: OnceLock<Fixture> = OnceLock::new();
static FILLING: Mutex<()> = Mutex::new(());

/// The registry of this process, holding busybox, busybox-zstd and nginx; started with the first call.
///
/// # Panics
/// When images or registry cannot be had.
pub fn fixture() -> &'static Fixture {
    SHARED.get_or_init(|| {
        let images = PathBuf::from(
            std::env::var_os("SAMPAN_TEST_IMAGES").unwrap_or_else(|| "/var/cache/sampan-test-images".into()),
        );
        script("make-images.sh", &[&images, Path::new("busybox"), Path::new("nginx")]);
        // A server of this process, gone with it, over the storage that all share.
        let owner = std::process::id().to_string();
        let directory = images.join(format!("registry-of-{owner}"));
        let storage = images.join("registry/storage");
        fs::create_dir_all(&storage).expect("create the registry's storage");
        drop(fs::remove_dir_all(&directory));
        fs::create_dir(&directory).expect("create the registry's directory");
        symlink(&storage, directory.join("storage")).expect("link to the storage");
        let address =
            script("registry.sh", &[Path::new("start"), &directory, Path::new("0"), Path::new(&owner)]);
        script(
            "registry.sh",
            &[Path::new("fill"), &directory, &images, Path::new("busybox"), Path::new("nginx")],
        );
        Fixture { address: address.trim().to_owned(), images, directory }
    })
}

impl Fixture {
    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The full name of an image in the registry.
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}:latest", self.address)
    }

    /// The full name of a Debian as small as it gets, with apt: what nginx is made on.
    pub fn debian(&self) -> String {
        let _one_at_a_time = FILLING.lock();
        script("registry.sh", &[Path::new("fill"), &self.directory, &self.images, Path::new("base")]);
        self.image("base")
    }

    /// Where `make-images.sh` left its OCI layouts.
    pub fn images(&self) -> &Path {
        &self.images
    }

    /// Makes the large image too, and gives its full name. Takes minutes the first time.
    pub fn large(&self) -> String {
        let _one_at_a_time = FILLING.lock();
        script("make-images.sh", &[&self.images, Path::new("large")]);
        script("registry.sh", &[Path::new("fill"), &self.directory, &self.images, Path::new("large")]);
        self.image("large")
    }
}

/// Runs one of the scripts in `images/` and gives what it printed; its progress goes to stderr.
fn script(name: &str, arguments: &[&Path]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("images").join(name);
    let output = Command::new(&path)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .unwrap_or_else(|error| panic!("run {}: {error}", path.display()));
    assert!(output.status.success(), "{name} {arguments:?}: {}", output.status);
    String::from_utf8(output.stdout).expect("scripts print text")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http_get;

    #[test]
    fn the_registry_has_what_tests_pull() {
        let address = fixture().address().parse().unwrap();
        for name in ["busybox", "busybox-zstd", "nginx"] {
            let answer = http_get(address, &format!("/v2/{name}/tags/list")).unwrap();
            assert!(answer.contains("latest"), "{name}: {answer}");
        }
    }
}
