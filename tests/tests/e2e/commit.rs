//! Images made of containers.

use std::process::Command;

use sampan_tests::{fixture, with_agent};
use serde_json::Value;

use super::archive::{inspect, tool};

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_container_differs_in_nothing_and_changes_are_listed() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), super::busybox(agent).await);
        let volume = format!("{}:/made/for/it", agent.base().display());
        cli.ok(&["run", "-q", "--name", "idle", "-v", &volume, &image, "true"]);
        assert_eq!(cli.ok(&["diff", "idle"]), "");
        let script = "echo x > /new; mkdir /d; touch /d/f; rm /bin/vi; chmod 700 /home";
        cli.ok(&["run", "-q", "--name", "busy", &image, "sh", "-c", script]);
        let seen = cli.ok(&["diff", "busy"]);
        let lines: Vec<&str> = seen.lines().collect();
        for line in ["A /new", "A /d", "A /d/f", "D /bin/vi", "C /home"] {
            assert!(lines.contains(&line), "{line}: {seen}");
        }
        assert_eq!(cli.json(&["diff", "busy"])[0]["kind"], "changed");
        cli.ok(&["rm", "idle"]);
        cli.ok(&["rm", "busy"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_committed_container_is_an_image_with_history_and_configuration() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), super::busybox(agent).await);
        let script = "echo made > /made; ln /made /again; setcap 2>/dev/null; sleep 1000";
        cli.ok(&["run", "-d", "-q", "--name", "work", "-e", "A=run", &image, "sh", "-c", script]);
        let upper = inspect(agent, "work")["GraphDriver"]["Data"]["UpperDir"].as_str().unwrap().to_owned();
        for _ in 0..200 {
            if std::path::Path::new(&upper).join("again").exists() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        std::fs::write(format!("{upper}/capable"), "x").unwrap();
        let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let attributes = [("security.capability", &capability[..20]), ("user.kept", b"yes")];
        for (name, value) in attributes {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(format!("{upper}/capable"), name, value, flags).unwrap();
        }
        let id = cli.ok(&[
            "commit",
            "-m",
            "first of all",
            "-a",
            "Ann <ann@example.org>",
            "-c",
            "CMD [\"cat\", \"/again\"]",
            "-c",
            "ENV B=change C=\"$A too\"",
            "-c",
            "LABEL x=y",
            "-c",
            "EXPOSE 80",
            "work",
            "made:1",
        ]);
        assert_eq!(inspect(agent, "work")["State"]["Running"], true, "it goes on");
        let made = inspect(agent, "made:1");
        assert_eq!(made["Id"], id.as_str());
        assert_eq!(
            (&made["Author"], &made["Comment"]),
            (&"Ann <ann@example.org>".into(), &"first of all".into())
        );
        let config = &made["Config"];
        assert_eq!(config["Cmd"], serde_json::json!(["cat", "/again"]));
        assert_eq!(config["Labels"]["x"], "y");
        assert_eq!(config["ExposedPorts"], serde_json::json!({"80/tcp": {}}));
        let env = config["Env"].to_string();
        assert!(env.contains("A=run") && env.contains("B=change") && env.contains("C=run too"), "{env}");
        assert_eq!(cli.ok(&["run", "-q", "--rm", "made:1"]), "made");

        // One lower directory more than the image it was made of, and nothing else.
        let base = inspect(agent, &image);
        let layers = |image: &Value| image["RootFS"]["Layers"].as_array().unwrap().clone();
        assert_eq!(layers(&made)[..layers(&base).len()], layers(&base)[..]);
        assert_eq!(layers(&made).len(), layers(&base).len() + 1);
        let own = made["GraphDriver"]["Data"]["UpperDir"].as_str().unwrap();
        for (name, value) in attributes {
            let mut found = [0; 100];
            let length = rustix::fs::getxattr(format!("{own}/capable"), name, &mut found[..]).unwrap();
            assert_eq!(&found[..length], value, "{name}");
        }

        let steps = cli.json(&["history", "made:1"]);
        assert_eq!((&steps[0]["comment"], &steps[0]["id"]), (&"first of all".into(), &id.as_str().into()));
        assert_eq!(steps[0]["created_by"], format!("sh -c {script}"));
        assert_eq!(steps[1]["id"], base["Id"], "the image it was made of is in the store");
        assert!(steps[0]["size"].as_u64().unwrap() > 0);

        // Other tools take it for an image.
        let file = agent.base().join("made.tar");
        cli.ok(&["save", "-o", file.to_str().unwrap(), "made:1"]);
        let layout = agent.base().join("layout");
        let archive = format!("oci-archive:{}", file.display());
        tool(
            "skopeo",
            &["--insecure-policy", "copy", "-q", &archive, &format!("oci:{}:x", layout.display())],
        );
        let (bundle, at) = (agent.base().join("bundle"), format!("{}:x", layout.display()));
        tool("umoci", &["unpack", "--image", &at, bundle.to_str().unwrap()]);
        assert_eq!(std::fs::read_to_string(bundle.join("rootfs/again")).unwrap(), "made\n");
        std::fs::remove_file(file).unwrap();
        std::fs::remove_dir_all(layout).unwrap();
        std::fs::remove_dir_all(bundle).unwrap();
        cli.ok(&["rm", "-f", "work"]);
        assert_eq!(cli.ok(&["run", "-q", "--rm", "made:1"]), "made", "the image needs no container");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_stands_still_while_it_is_committed() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), super::busybox(agent).await);
        // Two files that are only equal between rounds.
        let script = "i=0; while :; do i=$((i+1)); echo $i > /a; echo $i > /b; done";
        cli.ok(&["run", "-d", "-q", "--name", "spin", &image, "sh", "-c", script]);
        for round in 0..5 {
            let name = format!("still:{round}");
            cli.ok(&["commit", "spin", &name]);
            let check = cli.ok(&["run", "-q", "--rm", &name, "sh", "-c", "cat /a /b"]);
            let numbers: Vec<i64> = check.lines().filter_map(|line| line.parse().ok()).collect();
            assert!(numbers.len() < 2 || (0..=1).contains(&(numbers[0] - numbers[1])), "{check}");
        }
        assert!(cli.ok(&["commit", "--pause=false", "spin"]).starts_with("sha256:"), "without a name");
        assert_eq!(inspect(agent, "spin")["State"]["Running"], true);
        cli.ok(&["rm", "-f", "spin"]);
        for arguments in
            [&["commit", "nobody", "x"][..], &["commit", "-c", "RUN x", "nobody"], &["diff", "nobody"]]
        {
            let refused = cli.run(arguments);
            assert!(refused.code == 1 && refused.stderr.contains("nobody"), "{refused:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_images_command_line_page_is_built_without_a_dockerfile() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), super::pulled(agent, "nginx").await);
        let html = "echo '<h1>Hello, Docker! by commit</h1>' > /usr/share/nginx/html/index.html";
        cli.ok(&["run", "-q", "--name", "page", "--entrypoint", "sh", &image, "-c", html]);
        let refused = cli.run(&["commit", "-c", "COPY a b", "page", "page:1"]);
        assert!(refused.code == 1 && refused.stderr.contains("COPY"), "{refused:?}");
        cli.ok(&[
            "commit",
            "-c",
            "ENTRYPOINT [\"cat\"]",
            "-c",
            "CMD /usr/share/nginx/html/index.html",
            "page",
            "page:1",
        ]);
        let shown = cli.ok(&["run", "-q", "--rm", "page:1", "/usr/share/nginx/html/index.html"]);
        assert_eq!(shown, "<h1>Hello, Docker! by commit</h1>");
        cli.ok(&["rm", "page"]);
        let leftover = Command::new("ls").arg(agent.scope().root.join("content/ingest")).output().unwrap();
        assert!(leftover.stdout.is_empty() && fixture().address().contains(':'));
    })
    .await;
}
