//! Builds for machines that are not of this kind.

use sampan_proto::sampan::build_start;

use super::super::{archive::tool, push::Registry};
use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn other_platforms_are_built_for_as_far_as_nothing_is_run() {
    with_agent(async |agent| {
        let context =
            context(&[("file", "content"), ("Dockerfile", "FROM scratch\nCOPY file /file\nENV A=b\n")]);
        let built = build_with(agent, context.path(), |start| {
            start.platform = "s390x".into();
            start.tags = vec!["foreign".into()];
        })
        .await;
        built.image();
        let image = inspect(agent, "foreign");
        assert_eq!((&image["Architecture"], &image["Os"]), (&"s390x".into(), &"linux".into()));
        fs::write(context.path().join("Dockerfile"), "FROM scratch\nCOPY file /file\nRUN true\n").unwrap();
        let failed = build_with(agent, context.path(), |start| start.platform = "linux/s390x".into()).await;
        assert!(failed.error().contains("binfmt_misc") && failed.failure.unwrap().line == 3);
        // What is copied from an image of here into one for elsewhere is the Dockerfile's own affair.
        let copying = "FROM --platform=linux/s390x scratch\nCOPY --from=foreign /file /again\n";
        fs::write(context.path().join("Dockerfile"), copying).unwrap();
        let files = |start: &mut BuildStart| start.output = build_start::Output::Files as i32;
        assert!(build_with(agent, context.path(), files).await.result.is_some());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_gives_each_stage_the_image_of_its_platform() {
    with_agent(async |agent| {
        let registry = Registry::start();
        let (name, cli) = (format!("{}/many/arch:1", registry.address), agent.cli());
        let sources = context(&[
            ("amd64", "of amd64"),
            ("s390x", "of s390x"),
            ("Dockerfile", "FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /arch\nENV ARCH=$TARGETARCH\n"),
        ]);
        // The index is another tool's.
        let at = |name: &str| registry.directory.path().join(name).display().to_string();
        let (root, state) = (at("root"), at("state"));
        let storage = ["--root", &root, "--runroot", &state, "--storage-driver", "vfs"];
        let buildah = |arguments: &[&str]| tool("buildah", &[&storage[..], arguments].concat());
        buildah(&["manifest", "create", "index"]);
        for architecture in ["amd64", "s390x"] {
            let one = format!("{name}-{architecture}");
            let built = build_with(agent, sources.path(), |start| {
                start.platform = format!("linux/{architecture}");
                start.tags = vec![one.clone()];
            });
            built.await.image();
            cli.ok(&["push", "-q", &one]);
            buildah(&["manifest", "add", "--tls-verify=false", "index", &format!("docker://{one}")]);
            cli.ok(&["rmi", &one]);
        }
        buildah(&["manifest", "push", "-q", "--all", "--tls-verify=false", "index", &format!("docker://{name}")]);

        let both = context_of(&format!(
            "FROM --platform=linux/amd64 {name} AS here\nFROM {name}\nCOPY --from=here /arch /here\nLABEL of=$ARCH\n"
        ));
        for _ in 0..2 {
            let built = build_with(agent, both.path(), |start| {
                start.platform = "linux/s390x".into();
                start.tags = vec!["both".into()];
            });
            built.await.image();
            let image = inspect(agent, "both");
            let seen = (&image["Architecture"], &image["Config"]["Labels"]["of"]);
            assert_eq!(seen, (&"s390x".into(), &"s390x".into()));
            let (folder, from) = (agent.base().join("files"), both.path().display().to_string());
            let _ = fs::remove_dir_all(&folder);
            let to = format!("type=local,dest={}", folder.display());
            cli.ok(&["build", "-q", "--platform", "linux/s390x", "--output", &to, &from]);
            let file = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
            assert_eq!((file("arch"), file("here")), ("of s390x".into(), "of amd64".into()));
        }
        // The name is the image's that runs here, whatever else was taken out of the index.
        cli.ok(&["pull", "-q", &name]);
        assert_eq!(inspect(agent, &name)["Architecture"], "amd64");
        let missing = build_with(agent, both.path(), |start| start.platform = "linux/arm64".into()).await;
        let told = missing.error();
        assert!(told.contains("linux/arm64") && told.contains("linux/s390x"), "{told}");
    })
    .await;
}
