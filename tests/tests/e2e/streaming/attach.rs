//! Attach: joining a container's streams, and leaving them.

use std::process::Stdio;
use std::time::Duration;

use sampan_tests::{Ctr, eventually, with_agent};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use super::api::{Api, Target};
use super::client::{Speech, kubectl};
use super::{SOON, busybox, target};

#[tokio::test(flavor = "multi_thread")]
async fn attach_follows_the_output_until_the_container_ends() {
    with_agent(async |agent| {
        for speech in Speech::BOTH {
            let script = "while [ ! -e /tmp/end ]; do echo tick; sleep 0.2; done; echo last";
            let (target, api) = target(agent, script).await;
            let mut command = kubectl(&api, speech, agent.base(), &["attach", "target", "-c", "c"]);
            let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            assert_eq!(lines.next_line().await.unwrap().unwrap(), "tick");
            target.cri.sh(&target.container, "touch /tmp/end").await;
            let mut last = String::new();
            while let Some(line) = tokio::time::timeout(SOON, lines.next_line()).await.unwrap().unwrap() {
                last = line;
            }
            assert_eq!(last, "last");
            let status = tokio::time::timeout(SOON, child.wait()).await.unwrap().unwrap();
            assert_eq!(status.code(), Some(0), "{speech:?}");
            target.cri.clear_pod(&target.pod).await.unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attach_feeds_the_container_and_a_client_that_stops_reading_does_not_hold_it() {
    with_agent(async |agent| {
        let (cri, image, pod) = (agent.cri(), busybox(agent).await, agent.pod("attach"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let script = "while read word; do echo got $word; echo $word > /tmp/word; \
             [ $word = flood ] && head -c 20000000 /dev/zero; done; echo end > /tmp/word; sleep 1000";
        let mut config = Ctr::new("c", &image, &pod).sh(script);
        config.config.stdin = true;
        let container = cri.run(&pod_id, &config, &pod).await.unwrap();
        let target = Target { cri: cri.clone(), pod: pod_id.clone(), container: container.clone() };
        let api = Api::start(target).await;
        let word = async |wanted: &str| {
            eventually("the container has read it", SOON, async || {
                (cri.sh(&container, "cat /tmp/word 2>/dev/null || true").await == wanted).then_some(())
            })
            .await;
        };
        for speech in Speech::BOTH {
            let mut command = kubectl(&api, speech, agent.base(), &["attach", "-i", "target", "-c", "c"]);
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let mut stdin = child.stdin.take().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            stdin.write_all(b"one\n").await.unwrap();
            let line = tokio::time::timeout(SOON, lines.next_line()).await.unwrap().unwrap().unwrap();
            assert_eq!(line, "got one", "{speech:?}");
            // Nobody reads any more: the container goes on all the same.
            stdin.write_all(b"flood\ntwo\n").await.unwrap();
            word("two").await;
            child.kill().await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}
