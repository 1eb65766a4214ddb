//! Several stages: which are built, in which order, and what is copied between them.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_one_stage_makes_another_copies_by_number_and_name() {
    with_agent(async |agent| {
        let base = fixture().image("busybox");
        let dockerfile = format!(
            "FROM {base} AS builder\nRUN mkdir /out && printf '#!/bin/sh\\necho compiled\\n' > /out/tool && chmod 755 /out/tool\n\
             FROM {base} AS unused\nRUN false\n\
             FROM {base}\nCOPY --from=0 /out/tool /bin/first\nCOPY --from=builder /out /opt\nCMD [\"first\"]\n"
        );
        let context = context_of(&dockerfile);
        build(agent, &context, "staged").await.image();
        assert_eq!(run(agent, "staged", &[]), "compiled");
        assert_eq!(run(agent, "staged", &["/opt/tool"]), "compiled");
        // The stage alone.
        let target = |start: &mut BuildStart| {
            start.target = "builder".into();
            start.tags = vec!["builder".into()];
        };
        let built = build_with(agent, context.path(), target).await;
        assert_eq!(built.titles(State::Cached).len(), 1);
        assert_eq!(run(agent, "builder", &["ls", "/out"]), "tool");
        let missing = build_with(agent, context.path(), |start| start.target = "bilder".into()).await;
        assert!(missing.error().contains("builder"), "{}", missing.error());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stages_share_what_they_stand_on_and_images_give_files() {
    with_agent(async |agent| {
        let (busybox, nginx) = (fixture().image("busybox"), fixture().image("nginx"));
        let dockerfile = format!(
            "FROM {busybox} AS builder\nRUN date +%s%N > /when\n\
             FROM builder AS build1\nRUN echo 1 > /one\n\
             FROM builder AS build2\nRUN echo 2 > /two\n\
             FROM {busybox}\nCOPY --from=build1 /when /one /a/\nCOPY --from=build2 /when /two /b/\n\
             COPY --from={nginx} /etc/nginx/nginx.conf /nginx.conf\n"
        );
        build(agent, &context_of(&dockerfile), "shared").await.image();
        let seen = run(
            agent,
            "shared",
            &["sh", "-c", "cmp /a/when /b/when && cat /a/one /b/two && grep -c . /nginx.conf"],
        );
        assert!(seen.starts_with("1\n2\n"), "{seen}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn independent_stages_run_side_by_side() {
    with_agent(async |agent| {
        let base = fixture().image("busybox");
        let dockerfile = format!(
            "FROM {base} AS a\nRUN sleep 2; echo a > /a\nFROM {base} AS b\nRUN sleep 2; echo b > /b\n\
             FROM {base}\nCOPY --from=a /a /\nCOPY --from=b /b /\n"
        );
        let built = build(agent, &context_of(&dockerfile), "parallel").await;
        built.image();
        let sleeps: Vec<_> =
            built.steps.values().filter(|step| step.title.starts_with("RUN sleep")).collect();
        let [one, two] = sleeps.as_slice() else { panic!("{:?}", built.steps) };
        assert!(one.started_at < two.finished_at && two.started_at < one.finished_at, "{sleeps:?}");
    })
    .await;
}
