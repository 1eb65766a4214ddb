//! What a folder is told as, what outputs mean, and what is said of secrets. Builds are in the end-to-end tests.

use std::{fs, os::unix::fs::symlink, path::PathBuf};

use sampan_imagestore::build::Ignore;
use sampan_proto::sampan::ContextEntry;

use super::{
    context, source,
    target::{self, Target},
};
use crate::cli::failure::Failure;

fn told(root: &std::path::Path, ignore: &str) -> Vec<ContextEntry> {
    let mut entries = Vec::new();
    let ignore = Ignore::parse(ignore).unwrap();
    context::scan(root, &ignore, &mut |entry| {
        entries.push(entry);
        Ok(())
    })
    .unwrap();
    entries
}

fn names(entries: &[ContextEntry]) -> Vec<String> {
    entries.iter().map(|entry| String::from_utf8(entry.path.clone()).unwrap()).collect()
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for path in ["a/deep", "b", "target/debug", "empty"] {
        fs::create_dir_all(folder.path().join(path)).unwrap();
    }
    for path in ["a/one", "a/deep/two", "b/three", "target/debug/big", "target/keep", "top"] {
        fs::write(folder.path().join(path), path).unwrap();
    }
    symlink("/etc/passwd", folder.path().join("b/link")).unwrap();
    folder
}

#[test]
fn entries_come_once_with_parents_before_what_is_in_them() {
    let folder = folder();
    let entries = told(folder.path(), "");
    assert_eq!(
        names(&entries),
        [
            "a",
            "a/deep",
            "a/deep/two",
            "a/one",
            "b",
            "b/link",
            "b/three",
            "empty",
            "target",
            "target/debug",
            "target/debug/big",
            "target/keep",
            "top",
        ]
    );
    let link = &entries[5];
    assert_eq!(link.link, b"/etc/passwd", "links are told and not followed");
    assert_eq!(entries[3].size, "a/one".len() as u64);
}

#[test]
fn what_is_ignored_is_not_told_and_what_is_taken_back_is_with_its_folders() {
    let folder = folder();
    assert_eq!(names(&told(folder.path(), "*\n!top")), ["top"]);
    assert_eq!(
        names(&told(folder.path(), "target\n!target/keep\na\nb\ntop\nempty")),
        ["target", "target/keep"]
    );
    assert_eq!(names(&told(folder.path(), "*\n!a/deep/two")), ["a", "a/deep", "a/deep/two"]);
    assert_eq!(names(&told(folder.path(), "*\n!a/nothing")), [] as [&str; 0]);
}

#[test]
fn an_ignored_folder_is_not_even_read() {
    let folder = folder();
    // A folder that cannot be read would end the walk; a file in its place does the same.
    let broken = folder.path().join("secret");
    fs::create_dir(&broken).unwrap();
    for number in 0..200 {
        fs::write(broken.join(number.to_string()), "").unwrap();
    }
    let entries = told(folder.path(), "secret");
    assert!(names(&entries).iter().all(|name| !name.starts_with("secret")));
}

#[test]
fn outputs_are_read() {
    let path = |text: &str| Some(PathBuf::from(text));
    for (text, target) in [
        ("image", Target::Image),
        ("type=image", Target::Image),
        ("-", Target::Tar(None)),
        ("out", Target::Folder("out".into())),
        ("type=local,dest=out", Target::Folder("out".into())),
        ("type=tar,dest=out.tar", Target::Tar(path("out.tar"))),
        ("type=oci,dest=image.tar", Target::Archive(path("image.tar"))),
        ("type=docker", Target::Archive(None)),
        ("type=docker,dest=-", Target::Archive(None)),
    ] {
        assert_eq!(target::parse(text), Ok(target), "{text}");
    }
    for text in ["type=local", "type=banana", "dest=x", "type=image,dest=x", "type=tar,level=3"] {
        assert!(target::parse(text).is_err(), "{text}");
    }
}

#[test]
fn secrets_come_from_files_and_variables() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    fs::write(&file, "s3cret").unwrap();
    let given = [format!("id=one,src={}", file.display()), "id=two,env=PATH".to_owned()];
    let found = source::secrets(&given).unwrap();
    assert_eq!(found["one"], b"s3cret");
    assert_eq!(found["two"], std::env::var("PATH").unwrap().into_bytes());
    for text in ["type=env,id=three,src=PATH", "type=env,id=three,env=PATH", "type=env,id=PATH"] {
        let found = source::secrets(&[text.to_owned()]).unwrap();
        assert_eq!(
            found.into_values().next().unwrap(),
            std::env::var("PATH").unwrap().into_bytes(),
            "{text}"
        );
    }
    for (text, part) in [
        ("src=x", "no id="),
        ("id=a,src=/no/such", "No such file"),
        ("id=a,env=SAMPAN_NO_SUCH", "no variable SAMPAN_NO_SUCH"),
        ("id=a,src=x,env=y", "both"),
        ("id=a,banana", "\"banana\""),
    ] {
        let Err(Failure::Message(message)) = source::secrets(&[text.to_owned()]) else { panic!("{text}") };
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn repositories_and_missing_folders_are_told_apart() {
    for (context, part) in [
        ("https://example.test/project.git#main", "git repository"),
        ("git@example.test:project", "git repository"),
        ("/no/such/folder", "/no/such/folder"),
        ("/etc/hostname", "is no folder"),
    ] {
        let Err(Failure::Message(message)) = source::Source::find(context, None) else { panic!("{context}") };
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn links_of_a_context_lead_nowhere_outside_and_nothing_is_cut_off() {
    let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (root, context) = (folder.path(), folder.path().to_str().unwrap());
    let refusal = |file: Option<&std::path::Path>| match source::Source::find(context, file) {
        Err(Failure::Message(message)) => message,
        other => panic!("{other:?}"),
    };
    fs::write(outside.path().join("file"), "FROM scratch\n").unwrap();
    symlink(outside.path().join("file"), root.join("Dockerfile")).unwrap();
    assert!(refusal(None).contains("leads out of the context"));
    symlink(outside.path(), root.join("way")).unwrap();
    assert!(refusal(Some("way/file".as_ref())).contains("leads out of the context"));
    // Whoever names a file elsewhere means it.
    source::Source::find(context, Some(&outside.path().join("file"))).unwrap();
    fs::remove_file(root.join("Dockerfile")).unwrap();
    fs::write(root.join("real"), "FROM scratch\n").unwrap();
    symlink("real", root.join("Dockerfile")).unwrap();
    source::Source::find(context, None).unwrap();
    symlink("/etc/passwd", root.join(".dockerignore")).unwrap();
    assert!(refusal(None).contains("the ignore file"));
    fs::remove_file(root.join(".dockerignore")).unwrap();
    fs::write(root.join("real"), "#".repeat((4 << 20) + 1)).unwrap();
    assert!(refusal(None).contains("more than 4 MiB"));
}
