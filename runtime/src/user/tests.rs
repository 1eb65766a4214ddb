//! Users as an image's own passwd and group have them: usual ones, wrong ones, and such as are made to do harm.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::*;

struct Image {
    dir: tempfile::TempDir,
    root: OwnedFd,
}

impl Image {
    fn new(passwd: &str, group: &str) -> Image {
        let image = Image::empty();
        fs::create_dir(image.path("etc")).unwrap();
        fs::write(image.path("etc/passwd"), passwd).unwrap();
        fs::write(image.path("etc/group"), group).unwrap();
        image
    }

    fn empty() -> Image {
        let dir = tempfile::tempdir().unwrap();
        let root = sys::mount::open_directory(dir.path()).unwrap();
        Image { dir, root }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn resolve(&self, spec: &str) -> Result<User, Error> {
        resolve(self.root.as_fd(), spec)
    }

    fn ids(&self, spec: &str) -> (u32, u32, Vec<u32>) {
        let user = self.resolve(spec).unwrap();
        (user.uid, user.gid, user.additional_gids)
    }
}

fn debian() -> Image {
    Image::new(
        "root:x:0:0:root:/root:/bin/bash\n# comment\n\nbroken line\nwww:x:33:33:www:/var/www:/bin/sh\n\
         other:x:1000:1000::/home/other:/bin/sh\nnohome:x:1001:1001\n",
        "root:x:0:\nwww:x:33:\nssl:x:110:www,other\naudio:x:29:other,www\ndouble:x:29:www\n",
    )
}

#[test]
fn names_and_numbers_find_the_same_user() {
    let image = debian();
    assert_eq!(image.ids("www"), (33, 33, vec![110, 29]));
    assert_eq!(image.ids("33"), (33, 33, vec![110, 29]));
    let user = image.resolve("www").unwrap();
    assert_eq!((user.name.as_deref(), user.home.as_deref()), (Some("www"), Some("/var/www")));
    assert_eq!(image.resolve("nohome").unwrap().home, None);
}

#[test]
fn nothing_asked_is_root() {
    assert_eq!(debian().ids(""), (0, 0, vec![]));
    assert_eq!(Image::empty().ids(""), (0, 0, vec![]));
    assert_eq!(debian().resolve("").unwrap().home.as_deref(), Some("/root"));
}

#[test]
fn given_group_replaces_all_of_the_users_groups() {
    let image = debian();
    assert_eq!(image.ids("www:audio"), (33, 29, vec![]));
    assert_eq!(image.ids("www:4242"), (33, 4242, vec![]));
    assert_eq!(image.ids(":audio"), (0, 29, vec![]));
    assert_eq!(member_groups(image.root.as_fd(), "www").unwrap(), [110, 29]);
    assert_eq!(resolve_group(image.root.as_fd(), "ssl").unwrap(), 110);
}

#[test]
fn unknown_numbers_are_taken_and_unknown_names_are_not() {
    let image = debian();
    assert_eq!(image.ids("4711"), (4711, 0, vec![]));
    assert_eq!(image.resolve("x").unwrap_err().to_string(), "user \"x\" is not in the image's /etc/passwd");
    assert_eq!(
        image.resolve("www:x").unwrap_err().to_string(),
        "group \"x\" is not in the image's /etc/group"
    );
    assert!(matches!(Image::empty().resolve("www"), Err(Error::UnknownUser { .. })));
}

#[test]
fn numbers_out_of_range_are_refused() {
    let image =
        Image::new("-1:x:0:0::/:\n2147483648:x:0:0::/:\n99999999999:x:0:0::/:\nbig:x:4294967296:0::/:\n", "");
    for spec in ["2147483648", "4294967296", "-1", "99999999999", "+1", "0:2147483648", "0:-1"] {
        assert!(matches!(image.resolve(spec), Err(Error::OutOfRange { .. })), "{spec}");
    }
    assert_eq!(image.ids("2147483647").0, 2147483647);
    assert!(
        matches!(image.resolve("big"), Err(Error::UnknownUser { .. })),
        "a line with an impossible id doesn't count"
    );
}

#[test]
fn number_is_never_a_name() {
    let image = Image::new("1000:x:0:0::/root:/bin/sh\n", "1000:x:0:\n");
    assert_eq!(image.ids("1000:1000"), (1000, 1000, vec![]));
}

#[test]
fn files_are_found_beneath_the_root_only() {
    let image = Image::empty();
    fs::create_dir(image.path("etc")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", image.path("etc/passwd")).unwrap();
    assert!(
        matches!(image.resolve("root"), Err(Error::Open { .. })),
        "a link to itself, not to the host's file"
    );
    fs::create_dir(image.path("real")).unwrap();
    fs::write(image.path("real/passwd"), "inside:x:5:5::/:\n").unwrap();
    fs::remove_file(image.path("etc/passwd")).unwrap();
    std::os::unix::fs::symlink("/real/passwd", image.path("etc/passwd")).unwrap();
    assert_eq!(image.ids("inside").0, 5);
}

#[test]
fn giant_files_and_fifos_are_refused_at_once() {
    let since = Instant::now();
    let image = debian();
    let file = fs::File::create(image.path("etc/passwd")).unwrap();
    file.set_len(1 << 40).unwrap();
    assert!(matches!(image.resolve("root"), Err(Error::TooLarge { .. })));
    fs::remove_file(image.path("etc/passwd")).unwrap();
    let directory = image.path("etc");
    let directory = sys::mount::open_directory(&directory).unwrap();
    sys::file::mknodat(&directory, "passwd", FileType::Fifo, 0o666, (0, 0)).unwrap();
    assert!(matches!(image.resolve("root"), Err(Error::NotRegular { .. })));
    fs::remove_file(image.path("etc/passwd")).unwrap();
    fs::create_dir(image.path("etc/passwd")).unwrap();
    assert!(matches!(image.resolve("0"), Err(Error::NotRegular { .. })));
    assert!(since.elapsed() < Duration::from_secs(1));
}
