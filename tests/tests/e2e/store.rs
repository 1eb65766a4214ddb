//! The store looks after itself: what nobody needs goes, what is damaged is found and mended.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sampan_tests::{
    Agent, Disk, Entry, Fault, FaultyRegistry, Layer, Options, binary, container, eventually, fixture,
    with_agent, with_agent_of,
};

use super::SOON;
use super::archive::inspect;
use super::crash::signal_monitor;

fn entries(agent: &Agent, path: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(agent.scope().root.join(path)).unwrap();
    let mut entries: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    entries
}

#[tokio::test(flavor = "multi_thread")]
async fn prune_removes_what_nobody_uses() {
    let configuration = format!("[images]\npinned = [{:?}]\n", "keep/this:1");
    with_agent_of(Options { configuration, ..Options::default() }, async |agent| {
        let (cli, image) = (agent.cli(), super::busybox(agent).await);
        let nginx = super::pulled(agent, "nginx").await;
        cli.ok(&["run", "-q", "--name", "ended", &image, "true"]);
        cli.ok(&["commit", "ended"]);
        assert_eq!(cli.json(&["images"]).as_array().unwrap().len(), 3);
        let asked = cli.run(&["prune"]);
        assert!(asked.code == 1 && asked.stderr.contains("--force"), "{asked:?}");
        let pruned = cli.ok(&["image", "prune", "-f"]);
        assert!(pruned.contains("deleted: sha256:") && pruned.contains("Total reclaimed space"), "{pruned}");
        assert_eq!(cli.json(&["images"]).as_array().unwrap().len(), 2, "the one without a name");
        cli.ok(&["tag", &nginx, "keep/this:1"]);
        let pruned = cli.ok(&["image", "prune", "-a", "-f"]);
        assert_eq!(pruned, "Total reclaimed space: 0B", "one is used by a container, one is pinned");
        let pruned = cli.ok(&["prune", "-a", "-f"]);
        assert!(
            pruned.starts_with("Deleted Containers:") && pruned.contains(&format!("untagged: {image}")),
            "{pruned}"
        );
        let left = cli.json(&["images"]);
        assert_eq!(left[0]["repo_tags"].to_string().matches("keep/this:1").count(), 1, "{left}");
        assert_eq!(left.as_array().unwrap().len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_failed_pull_left_is_collected() {
    with_agent(async |agent| {
        let layers: Vec<Layer> = (0..3u8)
            .map(|number| Layer::new(vec![Entry::File(format!("file-{number}"), vec![number; 100_000])]))
            .collect();
        for fault in [Fault::Truncated, Fault::WrongDigest] {
            let registry = FaultyRegistry::start(fault, &layers).await;
            agent.cri().pull(&registry.image()).await.unwrap_err();
            agent.cli().ok(&["image", "prune", "-f"]);
            assert_eq!(entries(agent, "content/blobs/sha256"), [""; 0].map(PathBuf::from));
            assert_eq!(entries(agent, "snapshots/committed"), [""; 0].map(PathBuf::from));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unused_images_make_room_above_the_high_mark() {
    let configuration =
        "[images]\nhigh_bytes = 1500000\nlow_bytes = 100\ncheck_seconds = 1\nminimum_age_seconds = 0\n"
            .to_owned();
    with_agent_of(Options { configuration, ..Options::default() }, async |agent| {
        let (cli, image) = (agent.cli(), super::busybox(agent).await);
        cli.ok(&["run", "-d", "-q", "--name", "user", &image, "sleep", "1000"]);
        super::pulled(agent, "nginx").await;
        eventually("nginx makes room", SOON, async || {
            (cli.json(&["images"]).as_array().unwrap().len() == 1).then_some(())
        })
        .await;
        assert_eq!(cli.json(&["images"])[0]["repo_tags"][0], image.as_str(), "a container uses it");
        cli.ok(&["rm", "-f", "user"]);
        eventually("and the other", SOON, async || {
            (cli.json(&["images"]) == serde_json::json!([])).then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_files_make_room_as_many_bytes_do() {
    let files = (0..2000).map(|number| Entry::File(format!("file-{number}"), Vec::new())).collect();
    let registry = FaultyRegistry::start(Fault::None, &[Layer::new(files)]).await;
    // More than busybox has, and fewer than the other.
    let configuration =
        "[images]\nhigh_inodes = 1500\nlow_inodes = 10\ncheck_seconds = 1\nminimum_age_seconds = 0\n"
            .to_owned();
    with_agent_of(Options { configuration, ..Options::default() }, async |agent| {
        let (cli, image) = (agent.cli(), super::busybox(agent).await);
        cli.ok(&["run", "-d", "-q", "--name", "user", &image, "sleep", "1000"]);
        agent.cri().pull(&registry.image()).await.unwrap();
        eventually("the other makes room", SOON, async || {
            (cli.json(&["images"]).as_array().unwrap().len() == 1).then_some(())
        })
        .await;
        assert_eq!(cli.json(&["images"])[0]["repo_tags"][0], image.as_str(), "a container uses it");
        cli.ok(&["rm", "-f", "user"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_a_container_that_is_being_made_stay() {
    use rustix::process::Signal;
    use sampan_proto::cri;
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), super::busybox(agent).await);
        let volume = super::pulled(agent, "nginx").await;
        let (client, pod) = (agent.cri(), agent.pod("making"));
        let pod_id = client.run_pod(&pod).await.unwrap();
        let config = cri::ContainerConfig {
            mounts: vec![cri::Mount {
                container_path: "/m".into(),
                image: Some(cri::ImageSpec { image: volume, ..Default::default() }),
                readonly: true,
                ..Default::default()
            }],
            ..container("c", &image, &["true"])
        };
        // A monitor that does not answer holds the creation up where everything is laid out and nothing is recorded.
        signal_monitor(&pod_id, Signal::STOP);
        let prune = async {
            eventually("the bundle is written", SOON, async || {
                let bundles = fs::read_dir(agent.scope().state.join("pods").join(&pod_id)).unwrap().flatten();
                bundles.map(|bundle| bundle.path().join("config.json")).find(|path| path.exists())
            })
            .await;
            let pruned = cli.ok(&["image", "prune", "-a", "-f"]);
            signal_monitor(&pod_id, Signal::CONT);
            pruned
        };
        let (made, pruned) = tokio::join!(agent.create(&pod_id, config), prune);
        let container = made.unwrap();
        assert_eq!(pruned, "Total reclaimed space: 0B");
        let pruned = cli.ok(&["image", "prune", "-a", "-f"]);
        assert_eq!(pruned, "Total reclaimed space: 0B", "one is its root, one is mounted");
        client.start(&container).await.unwrap();
        assert_eq!(client.ended(&container).await.exit_code, 0);
        client.clear_pod(&pod_id).await.unwrap();
        cli.ok(&["image", "prune", "-a", "-f"]);
        assert_eq!(cli.json(&["images"]), serde_json::json!([]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_named_and_mended() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), super::pulled(agent, "nginx").await);
        let clean = cli.ok(&["store", "check"]);
        assert!(clean.contains("0 faults"), "{clean}");

        let seen = inspect(agent, &image);
        let top = PathBuf::from(seen["GraphDriver"]["Data"]["UpperDir"].as_str().unwrap());
        let lower = seen["GraphDriver"]["Data"]["LowerDir"].as_str().unwrap_or_default().to_owned();
        let page = [top.clone()].into_iter().chain(lower.split(':').map(PathBuf::from));
        let mut page = page.map(|layer| layer.join("usr/share/nginx/html/index.html"));
        let page = page.find(|page| page.exists()).expect("the page is in one of the layers");
        let whole = fs::read(&page).unwrap();
        let root = page.ancestors().nth(5).unwrap().to_owned();
        // Content with the same size and time; a mode; a file too many.
        let times = fs::metadata(&page).unwrap().modified().unwrap();
        let mut damaged = whole.clone();
        damaged[3] ^= 1;
        fs::write(&page, damaged).unwrap();
        fs::File::options().write(true).open(&page).unwrap().set_modified(times).unwrap();
        fs::set_permissions(page.parent().unwrap(), fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(root.join("planted"), "").unwrap();
        // And a blob, in the middle; the smallest is a document.
        let blob = entries(agent, "content/blobs/sha256");
        let blob = blob.iter().min_by_key(|path| path.metadata().unwrap().len()).unwrap();
        let hex = blob.file_name().unwrap().to_str().unwrap().to_owned();
        let mut bytes = fs::read(blob).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(blob, bytes).unwrap();

        let found = cli.run(&["store", "check"]);
        assert_eq!(found.code, 1, "{found:?}");
        for words in [
            &format!("blob {}", &hex[..12])[..],
            "/usr/share/nginx/html/index.html: has other content from byte 3 on",
            "/usr/share/nginx/html: has mode 0700 instead of 0755",
            "/planted: does not belong there",
        ] {
            assert!(found.stdout.contains(words), "{words}: {found:?}");
        }
        assert!(found.stderr.contains("--repair"), "{found:?}");
        let mended = cli.run(&["store", "check", "--repair"]);
        assert_eq!(mended.code, 0, "{mended:?}");
        assert!(mended.stdout.contains("(repaired)"), "{mended:?}");
        assert_eq!(fs::read(&page).unwrap(), whole);
        assert!(!root.join("planted").exists());
        let clean = cli.ok(&["store", "check"]);
        assert!(clean.contains("0 faults"), "{clean}");
        assert_eq!(
            cli.ok(&["run", "-q", "--rm", "--entrypoint", "cat", &image, "/usr/share/nginx/html/index.html"])
                .as_bytes(),
            whole.trim_ascii_end()
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_layer_is_fetched_again_alone_and_not_while_it_is_used() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), super::busybox(agent).await);
        cli.ok(&["run", "-d", "-q", "--name", "user", &image, "sleep", "1000"]);
        let seen = inspect(agent, &image);
        let top = PathBuf::from(seen["GraphDriver"]["Data"]["UpperDir"].as_str().unwrap());
        fs::write(top.join("planted"), "").unwrap();
        let refused = cli.run(&["store", "check", "--repair"]);
        assert!(refused.code == 1 && refused.stdout.contains("containers stand on it"), "{refused:?}");
        cli.ok(&["rm", "-f", "user"]);
        // Every layer's blob is lost half-way, as after a bad sector.
        for blob in seen["Blobs"].as_array().unwrap() {
            let hex = blob["Digest"].as_str().unwrap().trim_start_matches("sha256:");
            let path = agent.scope().root.join("content/blobs/sha256").join(hex);
            fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1000).unwrap();
        }
        let mended = cli.run(&["store", "check", "--repair"]);
        assert_eq!(mended.code, 0, "{mended:?}");
        assert!(!top.join("planted").exists());
        assert!(cli.ok(&["store", "check"]).contains("0 faults"));
        assert!(fixture().address().contains(':'));
    })
    .await;
}

/// The files and folders beneath `path` that anybody may write to, but for those of images and containers.
fn open_to_others(path: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(path).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_symlink() {
            continue;
        }
        let of_containers = ["fs", "merged", "shm"].iter().any(|own| name == *own);
        if of_containers {
            continue;
        }
        if metadata.permissions().mode() & 0o002 != 0 {
            found.push(format!("{:o} {}", metadata.permissions().mode(), path.display()));
        }
        if metadata.is_dir() {
            open_to_others(&path, found);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_a_umask_leaves_nothing_open() {
    let binaries = tempfile::tempdir().unwrap();
    let wrapper = binaries.path().join("sampand");
    let script = format!("#!/bin/sh\numask 0\nexec {} \"$@\"\n", binary("sampand").display());
    fs::write(&wrapper, script).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    let options = Options { binaries: Some(binaries.path().to_owned()), ..Options::default() };
    with_agent_of(options, async |agent| {
        let (cli, image) = (agent.cli(), super::busybox(agent).await);
        cli.ok(&["run", "-d", "-q", "--name", "c", &image, "sleep", "1000"]);
        cli.ok(&["commit", "c", "made:1"]);
        let scope = agent.scope();
        for root in [&scope.root, &scope.state] {
            assert_eq!(fs::metadata(root).unwrap().permissions().mode() & 0o7777, 0o700, "{root:?}");
        }
        for folder in ["content", "content/ingest", "metadata", "metadata/images", "snapshots"] {
            let mode = fs::metadata(scope.root.join(folder)).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o700, "{folder}");
        }
        let mut open = Vec::new();
        open_to_others(&scope.root, &mut open);
        open_to_others(&scope.state, &mut open);
        assert_eq!(open, [""; 0]);
        cli.ok(&["rm", "-f", "c"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_container_writes_is_limited_or_the_limit_is_refused() {
    // Not every kernel keeps quotas: Debian's does.
    let disk = Disk::with_quotas(256);
    let options = Options { root: disk.as_ref().map(Disk::path), ..Options::default() };
    let limited = disk.is_some();
    with_agent_of(options, async |agent| {
        let (cli, image) = (agent.cli(), super::busybox(agent).await);
        let write = "dd if=/dev/zero of=/file bs=1M count=16 2>&1; ls -l /file | awk '{print $5}'";
        let run = ["run", "-q", "--name", "c", "--storage-opt", "size=4m", &image, "sh", "-c", write];
        let ran = cli.run(&run);
        if limited {
            let size: u64 = ran.stdout.lines().last().unwrap_or_default().parse().unwrap_or(0);
            assert!((3 << 20..=4 << 20).contains(&size), "{ran:?}");
            let usage = cli.json(&["system", "df"]);
            let written = usage["containers"][0]["written"]["bytes"].as_u64().unwrap();
            assert!((3 << 20..=4 << 20).contains(&written), "{usage}");
            let other = cli.ok(&["run", "-q", "--rm", &image, "sh", "-c", write]);
            assert!(other.ends_with("16777216"), "who asks for no limit has none: {other}");
        } else {
            assert!(ran.code == 125 && ran.stderr.contains("keeps no project quotas"), "{ran:?}");
        }
        cli.run(&["rm", "-f", "c"]);
        let wrong = cli.run(&["run", "--storage-opt", "size=huge", &image]);
        assert!(wrong.stderr.contains("--storage-opt"), "{wrong:?}");
    })
    .await;
}
