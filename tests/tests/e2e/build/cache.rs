//! The cache: what counts and what does not, what is told of it, and what is removed.

use std::time::Duration;

use sampan_proto::sampan::build_cache_entry::Kind;
use sampan_proto::sampan::build_service_client::BuildServiceClient;
use sampan_proto::sampan::{
    BuildLogRequest, ListBuildCacheRequest, ListBuildsRequest, PruneBuildCacheRequest,
};
use tokio_stream::StreamExt as _;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn contents_count_and_times_do_not() {
    with_agent(async |agent| {
        let base = fixture().image("busybox");
        let dockerfile = format!("FROM {base}\nARG WHO=you\nCOPY a b /in/\nRUN echo hello $WHO > /out\n");
        let context = context(&[("a", "one"), ("b", "two"), ("Dockerfile", &dockerfile)]);
        // Files that were written this very moment are not remembered.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let first = build(agent, &context, "counted").await;
        first.image();
        assert_eq!(first.wanted.len(), 3, "{:?}", first.wanted);
        let again = build(agent, &context, "counted").await;
        assert_eq!(again.image(), first.image());
        assert_eq!(again.wanted, [""; 0], "an unchanged context costs metadata only");
        // Touched, sent again, and still the same.
        fs::File::options()
            .write(true)
            .open(context.path().join("a"))
            .unwrap()
            .set_modified(std::time::SystemTime::now())
            .unwrap();
        let touched = build(agent, &context, "counted").await;
        assert_eq!((touched.image(), touched.wanted.as_slice()), (first.image(), &["a".to_owned()][..]));
        fs::write(context.path().join("b"), "three").unwrap();
        let changed = build_with(agent, context.path(), |start| start.explain = true).await;
        assert_ne!(changed.image(), first.image());
        assert_eq!(changed.titles(State::Done).len(), 2, "the command stands on what was copied");
        let copy = changed.steps.values().find(|step| step.title.starts_with("COPY")).unwrap();
        assert!(copy.explanation.starts_with("content of /b (1) was"), "{copy:?}");
        let argument = build_with(agent, context.path(), |start| {
            start.explain = true;
            start.build_args.insert("WHO".into(), "me".into());
        })
        .await;
        let run = argument.steps.values().find(|step| step.title.starts_with("RUN")).unwrap();
        assert!(run.explanation.contains("variable WHO was \"you\" and is \"me\""), "{run:?}");
        let proxy = build_with(agent, context.path(), |start| {
            start.build_args.insert("WHO".into(), "me".into());
            start.build_args.insert("HTTP_PROXY".into(), "http://proxy.example".into());
        })
        .await;
        assert_eq!(proxy.image(), argument.image());
        let anew = build_with(agent, context.path(), |start| start.no_cache = true).await;
        assert_eq!(anew.titles(State::Cached), [""; 0]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_builds_at_once_run_a_step_once_and_it_outlives_the_first() {
    with_agent(async |agent| {
        let base = fixture().image("busybox");
        let context = context_of(&format!(
            "FROM {base}\nRUN echo begun; sleep 2; cat /proc/sys/kernel/random/uuid > /id\n"
        ));
        let mut first = sampan_tests::Running::begin(agent.channel(), context.path(), |_| {}).await;
        first.serve(|build| build.log.contains("begun")).await;
        let path = context.path().to_owned();
        let channel = agent.channel();
        let others = [(); 2].map(|()| {
            let (path, channel) = (path.clone(), channel.clone());
            tokio::spawn(async move { sampan_tests::build(channel, &path, |_| {}).await })
        });
        tokio::time::sleep(Duration::from_millis(500)).await;
        drop(first);
        let mut images = Vec::new();
        for other in others {
            let built = other.await.unwrap();
            assert!(built.log.contains("begun"), "who comes late hears what was said: {}", built.log);
            images.push(built.image().to_owned());
        }
        assert_eq!(images[0], images[1]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_of_its_own_makes_two_builds_one() {
    with_agent(async |agent| {
        let base = fixture().image("busybox");
        let dockerfile =
            format!("FROM {base}\nARG SOURCE_DATE_EPOCH\nCOPY a /in/a\nRUN echo x > /made\nWORKDIR /new\n");
        let context = context(&[("a", "one"), ("Dockerfile", &dockerfile)]);
        let change = |start: &mut BuildStart| {
            start.no_cache = true;
            start.build_args.insert("SOURCE_DATE_EPOCH".into(), "1700000000".into());
        };
        let first = build_with(agent, context.path(), change).await;
        fs::write(context.path().join("a"), "one").unwrap();
        let second = build_with(agent, context.path(), change).await;
        let (first, second) = (first.result.unwrap(), second.result.unwrap());
        assert_eq!((first.image_id, first.digest), (second.image_id.clone(), second.digest));
        assert_eq!(inspect(agent, &second.image_id)["Created"], "2023-11-14T22:13:20Z");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_is_listed_pruned_and_known_after_a_restart() {
    with_agent(async |agent| {
        let base = fixture().image("busybox");
        let dockerfile = format!(
            "FROM {base}\nRUN --mount=type=cache,id=mine,target=/c head -c 100000 /dev/urandom > /c/x\nCOPY Dockerfile /\n"
        );
        let context = context_of(&dockerfile);
        let built = build(agent, &context, "kept").await;
        let image = built.image().to_owned();
        let mut client = BuildServiceClient::new(agent.channel());
        let mut list = async || {
            let answer = client.list_build_cache(ListBuildCacheRequest {}).await.unwrap().into_inner();
            answer.entries
        };
        let entries = list().await;
        let of = |kind: Kind| entries.iter().filter(move |entry| entry.kind() == kind).collect::<Vec<_>>();
        assert_eq!((of(Kind::Step).len(), of(Kind::Mount).len(), of(Kind::Context).len()), (2, 1, 1), "{entries:?}");
        let mount = of(Kind::Mount)[0];
        assert!(mount.description == "mine" && mount.size >= 100_000, "{mount:?}");
        agent.terminate();
        agent.restart().await;
        assert_eq!(list().await.len(), 4);
        let again = build(agent, &context, "kept").await;
        assert_eq!((again.image(), again.titles(State::Cached).len()), (image.as_str(), 2));
        let mut client = BuildServiceClient::new(agent.channel());
        let builds = client.list_builds(ListBuildsRequest {}).await.unwrap().into_inner().builds;
        assert_eq!(builds.len(), 2);
        assert!(builds.iter().all(|build| build.image_id == image && build.title == "kept" && build.finished_at > 0));
        let request = BuildLogRequest { build_id: again.id[..6].to_owned() };
        let mut log = client.build_log(request).await.unwrap().into_inner();
        let mut text = String::new();
        while let Some(piece) = log.next().await {
            text.push_str(std::str::from_utf8(&piece.unwrap().data).unwrap());
        }
        assert!(text.contains("RUN --mount=type=cache,id=mine") && text.contains("CACHED"), "{text}");
        let request = PruneBuildCacheRequest { kinds: vec![Kind::Mount as i32], ..Default::default() };
        let pruned = client.prune_build_cache(request).await.unwrap().into_inner();
        assert!(pruned.removed.len() == 1 && pruned.reclaimed_bytes >= 100_000, "{pruned:?}");
        client.prune_build_cache(PruneBuildCacheRequest::default()).await.unwrap();
        let left = client.list_build_cache(ListBuildCacheRequest {}).await.unwrap().into_inner().entries;
        assert_eq!(left, []);
        // The image does not need the cache.
        assert_eq!(run(agent, "kept", &["head", "-c", "4", "/Dockerfile"]), "FROM");
        assert_eq!(build(agent, &context, "anew").await.titles(State::Cached), [""; 0]);
    })
    .await;
}
