//! CRI log files: `RFC3339Nano stdout|stderr P|F text`.

use std::path::Path;

use k8s_cri::v1::ReopenContainerLogRequest;
use sampan_tests::{Ctr, eventually, with_agent};

use super::{SOON, busybox};

/// One parsed line: time, stream, tag, text.
fn lines(path: &Path) -> Vec<(jiff::Timestamp, String, String, String)> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .map(|line| {
            let fields: Vec<&str> = line.splitn(4, ' ').collect();
            let [time, stream, tag, text] = fields[..] else { panic!("not a log line: {line:?}") };
            assert!(matches!(stream, "stdout" | "stderr") && matches!(tag, "P" | "F"), "{line:?}");
            (time.parse().expect("a time"), stream.into(), tag.into(), text.into())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_streams_are_kept_in_order_with_times() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("log"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let config = Ctr::new("c", &image, &pod)
            .sh("echo one; sleep 0.05; echo two >&2; sleep 0.05; echo; printf three");
        let id = cri.run(&pod_id, &config, &pod).await.unwrap();
        cri.ended(&id).await;
        let lines = lines(&pod.log_file(&config));
        let texts: Vec<_> =
            lines.iter().map(|(_, stream, _, text)| (stream.as_str(), text.as_str())).collect();
        assert_eq!(texts, [("stdout", "one"), ("stderr", "two"), ("stdout", ""), ("stdout", "three")]);
        assert!(lines.is_sorted_by_key(|(time, ..)| *time));
        assert!(lines[..3].iter().all(|(_, _, tag, _)| tag == "F"));
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_lines_come_in_parts_and_lose_nothing() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("log"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let script = "head -c 100000 /dev/zero | tr '\\0' x; echo; echo end";
        let config = Ctr::new("c", &image, &pod).sh(script);
        let id = cri.run(&pod_id, &config, &pod).await.unwrap();
        cri.ended(&id).await;
        let lines = lines(&pod.log_file(&config));
        let (long, last) = lines.split_at(lines.len() - 1);
        assert_eq!(long.iter().map(|(.., text)| text.len()).sum::<usize>(), 100_000);
        let tags: Vec<_> = long.iter().map(|(_, _, tag, _)| tag.as_str()).collect();
        assert!(tags.len() > 1 && tags[..tags.len() - 1].iter().all(|tag| *tag == "P"), "{tags:?}");
        assert_eq!(tags.last(), Some(&"F"));
        assert!(long.iter().all(|(.., text)| text.len() <= 16 << 10));
        assert_eq!(last[0].3, "end");
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_written_whole_and_blocks_nobody() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("log"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let config = Ctr::new("c", &image, &pod).sh("seq 1 200000");
        let id = cri.run(&pod_id, &config, &pod).await.unwrap();
        cri.ended(&id).await;
        let lines = lines(&pod.log_file(&config));
        assert_eq!(lines.len(), 200_000);
        assert!(lines.iter().enumerate().all(|(index, (.., text))| *text == (index + 1).to_string()));
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_log_path_means_no_log_file() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("log"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let mut config = Ctr::new("c", &image, &pod).sh("seq 1 100000; echo done >/tmp/done; sleep 1000");
        config.config.log_path.clear();
        let id = cri.run(&pod_id, &config, &pod).await.unwrap();
        eventually("the output has gone nowhere", SOON, async || {
            let answer = cri.exec(&id, &["cat", "/tmp/done"], 5).await.unwrap();
            (answer.exit_code == 0).then_some(())
        })
        .await;
        let left: Vec<_> =
            std::fs::read_dir(&pod.config.log_directory).into_iter().flatten().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_log_is_reopened_and_a_failed_reopening_makes_no_file() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (mut cri, pod) = (agent.cri(), agent.pod("log"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let config = Ctr::new("c", &image, &pod).sh("while :; do echo tick; sleep 0.05; done");
        let id = cri.run(&pod_id, &config, &pod).await.unwrap();
        let path = pod.log_file(&config);
        eventually("output", SOON, async || (!lines(&path).is_empty()).then_some(())).await;
        std::fs::rename(&path, path.with_extension("1")).unwrap();
        let request = ReopenContainerLogRequest { container_id: id.clone() };
        cri.runtime.reopen_container_log(request.clone()).await.unwrap();
        eventually("output in the new file", SOON, async || (!lines(&path).is_empty()).then_some(())).await;
        cri.stop(&id, 0).await.unwrap();
        std::fs::remove_file(&path).unwrap();
        let status = cri.runtime.reopen_container_log(request).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{status}");
        assert!(!path.exists());
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}
