//! The store looks after itself: what nobody needs goes, what is damaged is found and mended.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use sampan_tests::{
    Agent, Entry, Fault, FaultyRegistry, Layer, Options, eventually, fixture, with_agent, with_agent_of,
};

use super::SOON;
use super::archive::inspect;

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
    let configuration = "[images]\nhigh_bytes = 1500000\nlow_bytes = 100\ncheck_seconds = 1\n".to_owned();
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
