//! Every way of making an overlay that the kernel at hand knows has to make the same one: each case runs once for each.

use std::fs;

use super::super::unmount;
use super::*;

/// Directories for an overlay, on the file system of the temporary directory.
struct Stack {
    dir: tempfile::TempDir,
}

impl Stack {
    fn new() -> Stack {
        let dir = tempfile::tempdir().unwrap();
        for name in ["upper", "work", "merged"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Stack { dir }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn merged(&self) -> PathBuf {
        self.dir.path().join("merged")
    }

    /// A layer with a file of its own and one that all have.
    fn layer(&self, name: &str) -> String {
        fs::create_dir_all(self.path(name)).unwrap();
        fs::write(self.dir.path().join(name).join("own").with_extension(name.len().to_string()), "").unwrap();
        fs::write(self.dir.path().join(name).join("who"), name).unwrap();
        self.path(name)
    }

    fn options(&self, lower: &[String]) -> Options {
        let lower: Vec<String> = lower.iter().map(|layer| escape(Path::new(layer))).collect();
        let options = [
            format!("lowerdir={}", lower.join(":")),
            format!("upperdir={}", self.path("upper")),
            format!("workdir={}", self.path("work")),
            "redirect_dir=nofollow".to_owned(),
            "metacopy=off".to_owned(),
            "index=off".to_owned(),
            "nosuid".to_owned(),
        ];
        Options::parse(&options).unwrap()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.merged().join(name)).unwrap()
    }

    fn table(&self) -> String {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let merged = self.merged();
        table.lines().find(|line| line.split(' ').nth(4) == merged.to_str()).unwrap().to_owned()
    }

    fn assert_writes_go_to_the_upper_directory(&self) {
        fs::write(self.merged().join("written"), "x").unwrap();
        assert!(Path::new(&self.path("upper")).join("written").exists());
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        unmount(&self.merged()).unwrap();
    }
}

type Way = fn(&Layers, &Options, &Path) -> Result<(), Error>;

/// Every way to make the same mount. A kernel before 6.8 doesn't know the first.
const WAYS: [(&str, Way); 3] = [
    ("context", |layers, options, target| {
        with_context(layers, options, target).map_err(Error::mount("overlay", target))
    }),
    ("classic", |layers, options, target| classic(layers, options, target, page_size())),
    ("descriptors", |layers, options, target| by_descriptors(layers, options, target)),
];

fn by_descriptors(layers: &Layers, options: &Options, target: &Path) -> Result<(), Error> {
    // Less than the paths take and more than the numbers do.
    classic(layers, options, target, layers.data(escape).len().min(page_size()))
}

/// Those that the kernel at hand knows.
fn ways() -> &'static [(&'static str, Way)] {
    if has_layer_parameters() { &WAYS } else { &WAYS[1..] }
}

#[test]
fn this_kernel_takes_layers_one_by_one() {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap(), numbers.next().unwrap());
    assert_eq!(has_layer_parameters(), version >= (6, 8), "Linux {release}");
}

#[test]
fn every_way_stacks_layers_in_their_order() {
    for (name, way) in ways() {
        let stack = Stack::new();
        let lower = [stack.layer("top"), stack.layer("middle"), stack.layer("lowest!")];
        let options = stack.options(&lower);
        way(&Layers::of(&options).unwrap(), &options, &stack.merged())
            .unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert_eq!(stack.read("who"), "top", "{name}");
        for own in ["own.3", "own.6", "own.7"] {
            assert_eq!(stack.read(own), "", "{name}");
        }
        stack.assert_writes_go_to_the_upper_directory();
        let table = stack.table();
        assert!(table.contains("nosuid") && table.contains("- overlay overlay"), "{name}: {table}");
    }
}

#[test]
fn every_way_takes_odd_paths() {
    for (name, way) in ways() {
        let stack = Stack::new();
        let lower = [
            stack.layer("with:colon"),
            stack.layer("with,the comma"),
            stack.layer("with\\back\\slashes"),
            stack.layer("with space=1"),
        ];
        for odd in ["upper", "work"] {
            fs::rename(stack.path(odd), stack.path(&format!("{odd}:,\\"))).unwrap();
        }
        let mut options = stack.options(&lower);
        for (key, value) in &mut options.data {
            if key == "upperdir" || key == "workdir" {
                *value = value.take().map(|value| format!("{value}\\:\\,\\\\"));
            }
        }
        way(&Layers::of(&options).unwrap(), &options, &stack.merged())
            .unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert_eq!(stack.read("who"), "with:colon", "{name}");
        assert_eq!(fs::read_dir(stack.merged()).unwrap().count(), 5, "{name}");
        fs::write(stack.merged().join("written"), "x").unwrap();
        assert!(Path::new(&stack.path("upper:,\\")).join("written").exists(), "{name}");
    }
}

#[test]
fn as_many_layers_as_overlayfs_stacks_are_mounted_every_way_that_takes_them() {
    let stack = Stack::new();
    let lower: Vec<String> = (0..500).map(|number| stack.layer(&format!("{number:0>64}"))).collect();
    let options = stack.options(&lower);
    let layers = Layers::of(&options).unwrap();
    assert!(layers.data(escape).len() > 3 * page_size());
    let before = std::env::current_dir().unwrap();
    for (_, way) in &ways()[..ways().len() - 1] {
        way(&layers, &options, &stack.merged()).unwrap();
        assert_eq!(stack.read("who"), format!("{:0>64}", 0));
        stack.assert_writes_go_to_the_upper_directory();
        unmount(&stack.merged()).unwrap();
    }
    assert_eq!(std::env::current_dir().unwrap(), before, "the working directory of the process stays");
}

#[test]
fn paths_longer_than_a_parameter_are_mounted() {
    let stack = Stack::new();
    let long = format!("{}/{}/{}", "a".repeat(100), "b".repeat(100), "c".repeat(100));
    let options = stack.options(&[stack.layer(&long), stack.layer("short")]);
    mount(&options, &stack.merged(), None).unwrap();
    assert_eq!(stack.read("who"), long);
}

#[test]
fn layers_without_an_upper_directory_are_read_only() {
    let stack = Stack::new();
    let lower = format!("lowerdir={}:{}", stack.layer("a"), stack.layer("bb"));
    mount(&Options::parse(&[lower]).unwrap(), &stack.merged(), None).unwrap();
    assert_eq!(stack.read("who"), "a");
    assert_eq!(fs::write(stack.merged().join("x"), "").unwrap_err().raw_os_error(), Some(libc::EROFS));
}

#[test]
fn failure_says_what_the_kernel_says() {
    let stack = Stack::new();
    let options = stack.options(&[stack.path("missing")]);
    let layers = Layers::of(&options).unwrap();
    for (name, way) in ways() {
        let error = way(&layers, &options, &stack.merged()).unwrap_err();
        assert!(error.is_not_found(), "{name}: {error:?}");
        assert_eq!(error.to_string(), format!("mount overlay at {}", stack.merged().display()));
    }
    let mut options = stack.options(&[stack.layer("a")]);
    options.data.push(("nonsense".to_owned(), Some("1".to_owned())));
    let error = mount(&options, &stack.merged(), None).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    // The classic call logs for the whole machine only; its own text then has to do.
    let told = if has_layer_parameters() { "Unknown parameter 'nonsense'" } else { "nonsense=1" };
    assert!(cause.contains(told), "{cause}");
}

#[test]
fn escaped_layers_are_told_apart() {
    assert_eq!(split("/a:/b\\:c:/d\\\\"), ["/a", "/b:c", "/d\\"].map(PathBuf::from));
    assert_eq!(escape(Path::new("/b:c,d\\")), "/b\\:c\\,d\\\\");
    assert_eq!(unescape("/b\\:c"), Path::new("/b:c"));
}
