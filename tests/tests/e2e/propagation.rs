//! Which mounts of the host appear in a container, which of the container's on the host, and what may be written below.

use std::path::{Path, PathBuf};

use k8s_cri::v1::{Mount, MountPropagation};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use sampan_tests::{Cri, Ctr, Pod, with_agent};
use tonic::Code;

use super::busybox;

/// A mount of the test's own, gone with the value.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn new(path: &Path) -> Tmpfs {
        std::fs::create_dir_all(path).unwrap();
        mount("none", path, "tmpfs", MountFlags::empty(), None).unwrap();
        Tmpfs(path.into())
    }

    fn with(self, propagation: MountPropagationFlags) -> Tmpfs {
        mount_change(&self.0, propagation).unwrap();
        self
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn privileged(mut pod: Pod) -> Pod {
    pod.config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    pod
}

fn at_mnt(host: &Path, propagation: MountPropagation) -> Mount {
    Mount {
        container_path: "/mnt".into(),
        host_path: host.display().to_string(),
        propagation: propagation.into(),
        ..Mount::default()
    }
}

async fn with_mount(cri: &Cri, pod_id: &str, pod: &Pod, image: &str, name: &str, mount: Mount) -> String {
    let mut config = Ctr::sleeper(name, image, pod).security(|security| security.privileged = true);
    config.config.mounts.push(mount);
    cri.run(pod_id, &config, pod).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn mount_events_cross_as_far_as_the_request_says() {
    use MountPropagation::*;
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), privileged(agent.pod("propagation")));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let host = Tmpfs::new(&agent.base().join("shared")).with(MountPropagationFlags::SHARED);
        for directory in ["host", "inside"] {
            std::fs::create_dir(host.0.join(directory)).unwrap();
        }
        let run = async |name: &str, mode| {
            with_mount(&cri, &pod_id, &pod, &image, name, at_mnt(&host.0, mode)).await
        };
        let private = run("private", PropagationPrivate).await;
        let slave = run("slave", PropagationHostToContainer).await;
        let shared = run("shared", PropagationBidirectional).await;
        let late = Tmpfs::new(&host.0.join("host"));
        std::fs::write(late.0.join("file"), "").unwrap();
        for (id, seen) in [(&private, "0"), (&slave, "1"), (&shared, "1")] {
            assert_eq!(cri.sh(id, "ls /mnt/host | wc -l").await, seen);
        }
        for (id, seen) in [(&private, false), (&slave, false), (&shared, true)] {
            cri.sh(id, "mount -t tmpfs none /mnt/inside; touch /mnt/inside/file").await;
            assert_eq!(host.0.join("inside/file").exists(), seen);
            cri.sh(id, "umount /mnt/inside").await;
        }
        assert!(!host.0.join("inside/file").exists());
        drop(late);
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn propagation_that_the_hosts_mount_does_not_allow_is_refused() {
    use MountPropagation::*;
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("propagation"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let private = Tmpfs::new(&agent.base().join("private")).with(MountPropagationFlags::PRIVATE);
        for (mode, word) in [(PropagationBidirectional, "shared"), (PropagationHostToContainer, "slave")] {
            let mut config = Ctr::sleeper("c", &image, &pod);
            config.config.mounts.push(at_mnt(&private.0, mode));
            let status = cri.create(&pod_id, &config, &pod).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{status}");
            assert!(status.message().contains(word), "{status}");
        }
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn read_only_reaches_the_mounts_below_only_when_asked_for() {
    use MountPropagation::*;
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("recursive"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let host = Tmpfs::new(&agent.base().join("outer"));
        let _below = Tmpfs::new(&host.0.join("below"));
        let recursive =
            |readonly, mode| Mount { readonly, recursive_read_only: true, ..at_mnt(&host.0, mode) };
        for (readonly, mode) in [
            (false, PropagationPrivate),
            (true, PropagationHostToContainer),
            (true, PropagationBidirectional),
        ] {
            let mut config = Ctr::sleeper("c", &image, &pod);
            config.config.mounts.push(recursive(readonly, mode));
            let status = cri.create(&pod_id, &config, &pod).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        }
        for (name, mount, below) in [
            ("plain", Mount { readonly: true, ..at_mnt(&host.0, PropagationPrivate) }, true),
            ("recursive", recursive(true, PropagationPrivate), false),
        ] {
            let mut config = Ctr::sleeper(name, &image, &pod);
            config.config.mounts.push(mount);
            let id = cri.run(&pod_id, &config, &pod).await.unwrap();
            let can = async |path: &str| cri.exec(&id, &["touch", path], 10).await.unwrap().exit_code == 0;
            assert!(!can("/mnt/x").await, "{name}");
            assert_eq!(can("/mnt/below/x").await, below, "{name}");
        }
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}
