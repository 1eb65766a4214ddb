//! Volumes that an image asks for.

use std::path::Path;

use sampan_tests::{container, with_agent};

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

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_mounted_as_a_volume_and_never_written() {
    use sampan_proto::cri;
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("image-volume"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        // Images in mounts are newer than the independent client.
        let mut runtime = cri::runtime_service_client::RuntimeServiceClient::new(agent.channel());
        let spec = |image: &str| cri::ImageSpec { image: image.to_owned(), ..Default::default() };
        let mount = |path: &str, image: &str, sub: &str| cri::Mount {
            container_path: path.into(),
            image: Some(spec(image)),
            image_sub_path: sub.into(),
            readonly: true,
            ..Default::default()
        };
        let create = |mounts: Vec<cri::Mount>| {
            let config = container("c", &image, &["sleep", "1000"]);
            agent.create(&pod_id, cri::ContainerConfig { mounts, ..config })
        };
        for (sub, why) in [("no/such", "not there"), ("../../..", "leads out")] {
            let status = create(vec![mount("/m", &image, sub)]).await.unwrap_err();
            assert!(status.message().contains(why), "{status}");
        }
        let writable = cri::Mount { readonly: false, ..mount("/m", &image, "") };
        let status = create(vec![writable]).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
        let status = create(vec![mount("/m", "nope:1", "")]).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::NotFound, "{status}");
        let mounts = vec![
            mount("/whole", &image, ""),
            mount("/programs", &image, "bin"),
            mount("/one/busybox", &image, "bin/busybox"),
        ];
        let id = create(mounts).await.unwrap();
        cri.start(&id).await.unwrap();
        assert_eq!(
            cri.sh(&id, "ls /whole/bin/busybox /programs/busybox").await,
            "/programs/busybox\n/whole/bin/busybox"
        );
        assert_eq!(cri.sh(&id, "touch /whole/x /programs/x 2>/dev/null || echo refused").await, "refused");
        assert_eq!(cri.sh(&id, "/one/busybox echo runs").await, "runs");
        let request = cri::ContainerStatusRequest { container_id: id.clone(), verbose: false };
        let status = runtime.container_status(request).await.unwrap().into_inner().status.unwrap();
        assert!(status.mounts.iter().all(|mount| mount.readonly && mount.host_path.is_empty()));
        let shown = status.mounts[0].image.as_ref().unwrap();
        assert_eq!((&shown.image, &shown.image_ref), (&image, &status.image_ref));
        assert_eq!(
            status.mounts.iter().find(|mount| mount.container_path == "/programs").unwrap().image_sub_path,
            "bin"
        );
        agent.kill();
        agent.restart().await;
        assert_eq!(cri.sh(&id, "ls /programs/busybox").await, "/programs/busybox");
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_and_options_of_a_mount_are_as_asked() {
    use sampan_proto::cri;
    use std::os::unix::fs::MetadataExt;
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("mapped"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let mut runtime = cri::runtime_service_client::RuntimeServiceClient::new(agent.channel());
        let spec = |image: &str| cri::ImageSpec { image: image.to_owned(), ..Default::default() };
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "text").unwrap();
        let run = |host_id, length| vec![cri::IdMapping { host_id, container_id: 0, length }];
        let mapped = |uids, gids| cri::Mount {
            container_path: "/mapped".into(),
            host_path: folder.path().to_string_lossy().into(),
            uid_mappings: uids,
            gid_mappings: gids,
            ..Default::default()
        };
        let programs = |options: &[&str]| cri::Mount {
            container_path: "/programs".into(),
            image: Some(spec(&image)),
            mount_options: options.iter().map(|&option| option.to_owned()).collect(),
            readonly: true,
            ..Default::default()
        };
        let create = |mounts: Vec<cri::Mount>| {
            let config = container("c", &image, &["sleep", "1000"]);
            agent.create(&pod_id, cri::ContainerConfig { mounts, ..config })
        };
        for (mount, problem) in [
            (mapped(run(7, 1), vec![]), "both or not at all"),
            (mapped(run(7, 0), run(7, 1)), "length 0"),
            (programs(&["bind"]), "has \"bind\""),
            (cri::Mount { mount_options: vec!["ro".into()], ..mapped(vec![], vec![]) }, "are for images"),
        ] {
            let status = create(vec![mount]).await.unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
            assert!(status.message().contains(problem), "{status}");
        }
        let mounts = vec![mapped(run(1000, 1), run(2000, 1)), programs(&["noexec"])];
        let id = create(mounts).await.unwrap();
        cri.start(&id).await.unwrap();
        assert_eq!(cri.sh(&id, "stat -c %u:%g /mapped/file").await, "1000:2000");
        // Root in the container has no place in this mapping, the mapped user has.
        let script = "touch /mapped/x 2>/dev/null || echo refused";
        assert_eq!(cri.sh(&id, script).await, "refused");
        let request = cri::ContainerStatusRequest { container_id: id.clone(), verbose: true };
        let answer = runtime.container_status(request).await.unwrap().into_inner();
        let told = answer.status.unwrap().mounts;
        assert_eq!((&told[0].uid_mappings, &told[0].gid_mappings), (&run(1000, 1), &run(2000, 1)));
        assert_eq!(told[0].host_path, folder.path().to_string_lossy());
        assert_eq!(told[1].mount_options, ["noexec"]);
        let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
        assert_eq!(info["runtimeSpec"]["process"]["args"][0], "sleep");
        assert!(info["pid"].as_i64().unwrap() > 0, "{info}");
        let owner = std::fs::metadata(folder.path().join("file")).unwrap();
        assert_eq!((owner.uid(), owner.gid()), (0, 0), "on the host nothing is changed");
        let answer = cri.sh(&id, "/programs/bin/busybox true 2>&1 || echo not executed").await;
        assert!(answer.contains("not executed"), "{answer}");
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}
