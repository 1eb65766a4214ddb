//! A root directory on a small real disk that fills up.

use sampan_tests::{Ctr, Disk, Entry, Fault, FaultyRegistry, Layer, Options, with_agent_of};
use tonic::Code;

use super::busybox;

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_does_not_fit_leaves_nothing_and_the_rest_goes_on() {
    let disk = Disk::new(24);
    let options = Options { root: Some(disk.path()), ..Options::default() };
    with_agent_of(options, async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("small"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let id = cri.run(&pod_id, &Ctr::sleeper("c", &image, &pod), &pod).await.unwrap();
        let free = disk.free();
        let noise = |count: usize| (0..count).map(|_| rand::random()).collect::<Vec<u8>>();
        // Does not fit compressed, and fits compressed but not unpacked as well.
        for (size, count) in [(6 << 20, 6), (7 << 20, 1)] {
            let entries =
                (0..count).map(|number| Entry::File(format!("noise{number}"), noise(size))).collect();
            let registry = FaultyRegistry::start(Fault::None, &[Layer::new(entries)]).await;
            let ballast = (count == 1).then(|| disk.fill_but(10 << 20));
            let status = cri.pull(&registry.image()).await.expect_err("a pull that does not fit");
            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
            for word in [registry.image().as_str(), "No space left"] {
                assert!(status.message().contains(word), "{word:?} is not in: {status}");
            }
            if let Some(ballast) = ballast {
                std::fs::remove_file(ballast).unwrap();
            }
            assert!(disk.free() + (256 << 10) > free, "{} of {free} bytes are free again", disk.free());
            assert_eq!(cri.sh(&id, "echo alive").await, "alive", "what runs runs on");
        }
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_no_byte_free_pods_fail_cleanly_and_everything_can_be_removed() {
    let disk = Disk::new(24);
    let options = Options { root: Some(disk.path()), ..Options::default() };
    with_agent_of(options, async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("small"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let id = cri.run(&pod_id, &Ctr::sleeper("c", &image, &pod), &pod).await.unwrap();
        let ballast = disk.fill_but(0);
        let filler = disk.path().join("filler");
        let mut filler_file = std::fs::File::create(&filler).ok();
        if let Some(file) = &mut filler_file {
            while std::io::Write::write(file, &[0; 512]).is_ok_and(|written| written > 0) {}
        }
        let clean = agent.snapshot();
        let status = cri.run_pod(&agent.pod("other")).await.expect_err("no room for a record");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert!(status.message().contains("No space left"), "{status}");
        agent.assert_clean(&clean);
        cri.stop(&id, 0).await.expect("stop at zero bytes free");
        cri.remove(&id).await.expect("remove at zero bytes free");
        cri.clear_pod(&pod_id).await.expect("clear at zero bytes free");
        cri.remove_image(&image).await.expect("remove an image at zero bytes free");
        drop(filler_file);
        for file in [ballast, filler] {
            drop(std::fs::remove_file(file));
        }
        let pod_id = cri.run_pod(&pod).await.expect("as good as new");
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}
