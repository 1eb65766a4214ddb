//! The builds that this project is for: a page on a web server, a program compiled in one stage and shipped in another,
//! with a real package manager at work across the bridge.

use std::time::Duration;

use super::*;

/// How apt fetches on this machine (proxies and the like): apt within a build must do the same.
fn apt_options() -> String {
    let output = std::process::Command::new("apt-config").arg("dump").output().expect("apt is installed");
    let text = String::from_utf8_lossy(&output.stdout);
    let fetching = |line: &&str| {
        ["Acquire::http", "Acquire::ftp", "Acquire::Retries"].iter().any(|key| line.starts_with(key))
    };
    text.lines().filter(fetching).map(|line| format!("{line}\n")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_put_on_a_web_server() {
    with_agent(async |agent| {
        let base = fixture().image("nginx");
        let dockerfile = format!(
            "FROM {base}\nRUN mkdir -p /usr/share/nginx/html && sed -i s,/var/www/html,/usr/share/nginx/html, /etc/nginx/conf.d/page.conf\n\
             RUN echo '<h1>Hello, Docker! by Dockerfile</h1>' > /usr/share/nginx/html/index.html\n"
        );
        build(agent, &context_of(&dockerfile), "page").await.image();
        agent.cli().ok(&["run", "-d", "-q", "--name", "web", "-p", "127.0.0.1:18080:80", "page"]);
        let page = || sampan_tests::http_get("127.0.0.1:18080".parse().unwrap(), "/").unwrap_or_default();
        assert!(
            sampan_tests::eventually_sync(Duration::from_secs(10), || page().contains("<h1>Hello, Docker! by Dockerfile</h1>")),
            "{}",
            page()
        );
        agent.cli().ok(&["rm", "-f", "web"]);
        // Its history tells the command as it was written.
        assert!(agent.cli().ok(&["history", "--no-trunc", "page"]).contains("echo '<h1>Hello, Docker! by Dockerfile</h1>'"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_is_compiled_with_packages_from_the_mirror_and_copied_by_number_name_and_image() {
    with_agent(async |agent| {
        let (base, nginx) = (fixture().debian(), fixture().image("nginx"));
        let dockerfile = format!(
            "FROM {base} AS builder\nCOPY apt.conf /etc/apt/apt.conf.d/99build\n\
             RUN --mount=type=cache,target=/var/cache/apt,sharing=locked --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
                 apt-get update && apt-get install -y --no-install-recommends tcc libc6-dev\n\
             WORKDIR /src\nCOPY main.c .\nRUN tcc -static -o hello main.c || tcc -o hello main.c\n\
             FROM builder AS build1\nRUN echo 1 > /one\nFROM builder AS build2\nRUN echo 2 > /two\n\
             FROM {base}\nCOPY --from=0 /src/hello /usr/bin/hello\nCOPY --from=builder /src/main.c /usr/src/\n\
             COPY --from=build1 /one /\nCOPY --from=build2 /two /\nCOPY --from={nginx} /etc/nginx/nginx.conf /nginx.conf\n\
             CMD [\"hello\"]\n"
        );
        let source = "#include <stdio.h>\nint main(void) { puts(\"Hello from a compiler\"); return 0; }\n";
        let context = context(&[("Dockerfile", &dockerfile), ("apt.conf", &apt_options()), ("main.c", source)]);
        let built = build(agent, &context, "compiled").await;
        built.image();
        assert_eq!(run(agent, "compiled", &[]), "Hello from a compiler");
        assert_eq!(run(agent, "compiled", &["sh", "-c", "cat /one /two; grep -c . /nginx.conf"]).lines().take(2).collect::<Vec<_>>(), ["1", "2"]);
        // The stage with the tools alone, and it is all there already.
        let target = build_with(agent, context.path(), |start| {
            start.target = "builder".into();
            start.tags = vec!["tools".into()];
        })
        .await;
        target.image();
        assert_eq!(target.titles(State::Done), [""; 0]);
        assert!(run(agent, "tools", &["sh", "-c", "ls /var/lib/apt/lists /var/cache/apt | grep -c -e Packages -e pkgcache; tcc -v >&2"]).ends_with('0'), "the mount left nothing");
        // What apt calls its unfinished downloads looks like a leak.
        agent.cli().ok(&["builder", "prune", "--all", "--force"]);
    })
    .await;
}
