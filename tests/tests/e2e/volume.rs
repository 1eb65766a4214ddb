//! Volumes that an image asks for.

use std::path::Path;

use sampan_tests::with_agent;

use super::busybox;

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_of_the_image_begins_with_what_the_image_has_there_and_goes_with_its_container() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), busybox(agent).await);
        let script = "mkdir -p /data/deep && echo seed > /data/deep/file && chown 1:2 /data/deep/file && chmod 700 /data";
        cli.ok(&["run", "--name", "made", &image, "sh", "-c", script]);
        cli.ok(&["commit", "-c", "VOLUME /data /empty /given/", "made", "with-volumes"]);
        cli.ok(&["rm", "made"]);
        let given = tempfile::tempdir().unwrap();
        let given = format!("{}:/given", given.path().display());
        let script = "stat -c '%u:%g' /data/deep/file; cat /data/deep/file; stat -c %a /data /empty; touch /data/new; sleep 1000";
        cli.ok(&["run", "-d", "--read-only", "--name", "one", "-v", &given, "with-volumes", "sh", "-c", script]);
        let mounts = serde_json::from_str::<serde_json::Value>(&cli.ok(&["inspect", "one"])).unwrap()[0]["Mounts"].clone();
        let volume = |path: &str| {
            let found = mounts.as_array().unwrap().iter().find(|mount| mount["Destination"] == path);
            found.map(|mount| (mount["Type"].as_str().unwrap().to_owned(), mount["Source"].as_str().unwrap().to_owned()))
        };
        assert_eq!(volume("/given").unwrap().0, "bind", "what is mounted there by hand wins");
        let ((kind, source), empty) = (volume("/data").unwrap(), volume("/empty").unwrap());
        assert_eq!((kind.as_str(), empty.0.as_str()), ("volume", "volume"));
        sampan_tests::eventually("the container has written", super::SOON, async || {
            Path::new(&source).join("new").exists().then_some(())
        })
        .await;
        assert_eq!(cli.ok(&["logs", "one"]), "1:2\nseed\n700\n755");
        // Another container has volumes of its own.
        let text = cli.ok(&["run", "--rm", "with-volumes", "ls", "/data"]);
        assert_eq!(text, "deep");
        cli.ok(&["rm", "-f", "one"]);
        assert!(!Path::new(&source).exists());
    })
    .await;
}
