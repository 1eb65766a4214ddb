//! Images by the names, histories and archives that a person works with; other tools read and write the same files.

use std::path::Path;
use std::process::{Command, Stdio};

use sampan_tests::{Agent, Docker, binary, fixture, with_agent};
use serde_json::Value;

/// Runs a program of another project, and gives what it printed.
pub(crate) fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program} is missing ({error}): make setup"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

pub(crate) fn inspect(agent: &Agent, name: &str) -> Value {
    let list: Value = serde_json::from_str(&agent.cli().ok(&["inspect", name])).unwrap();
    list[0].clone()
}

/// Runs `sampan` in a shell, as `$0 --socket $1`, with a path as `$2`.
fn shell(agent: &Agent, script: &str, path: &Path) -> String {
    let (sampan, socket) = (binary("sampan"), agent.socket());
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .arg(&sampan)
        .arg(&socket)
        .arg(path)
        .output();
    let output = output.unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_takes_further_names_and_gives_them_up() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), super::busybox(agent).await);
        let id = inspect(agent, &image)["Id"].clone();
        assert_eq!(cli.ok(&["tag", &image, "other:v1"]), "");
        cli.ok(&["tag", "other:v1", "quay.io/x/other"]);
        for name in ["other:v1", "quay.io/x/other", "quay.io/x/other:latest"] {
            assert_eq!(inspect(agent, name)["Id"], id, "{name}");
        }
        let nginx = super::pulled(agent, "nginx").await;
        cli.ok(&["tag", &nginx, "other:v1"]);
        assert_eq!(inspect(agent, "other:v1")["Id"], inspect(agent, &nginx)["Id"], "the tag has moved");
        assert_eq!(inspect(agent, &image)["Id"], id, "and the image stays");
        let table = cli.ok(&["images"]);
        assert!(table.lines().any(|line| line.starts_with("other ") && line.contains(" v1 ")), "{table}");
        assert_eq!(cli.ok(&["rmi", "other:v1"]), "Untagged: docker.io/library/other:v1");
        for (arguments, word) in [
            (["tag", "nobody", "x"], "nobody"),
            (["tag", &image, "UPPER"], "lower-case"),
            (
                ["tag", &image, "x@sha256:0000000000000000000000000000000000000000000000000000000000000000"],
                "TAG",
            ),
        ] {
            let refused = cli.run(&arguments);
            assert!(refused.code == 1 && refused.stderr.contains(word), "{refused:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn history_and_inspect_show_what_other_tools_read() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), super::pulled(agent, "nginx").await);
        let remote = format!("docker://{image}");
        let config: Value =
            serde_json::from_str(&tool("skopeo", &["inspect", "--tls-verify=false", "--config", &remote]))
                .unwrap();
        let told = config["history"].as_array().unwrap();
        let steps = cli.json(&["history", &image]);
        let steps = steps.as_array().unwrap();
        assert_eq!(steps.len(), told.len());
        for (step, told) in steps.iter().zip(told.iter().rev()) {
            assert_eq!(step["created_by"], told["created_by"]);
            let empty = told["empty_layer"].as_bool().unwrap_or(false);
            assert_eq!(step["size"] == 0, empty, "{step} {told}");
        }
        let seen = inspect(agent, &image);
        assert_eq!(steps[0]["id"], seen["Id"]);
        assert_eq!(cli.ok(&["history", "-q", &image]).lines().count(), steps.len());
        let table = cli.ok(&["history", &image]);
        let heading = table.lines().next().unwrap();
        assert_eq!(heading.split("  ").filter(|word| !word.is_empty()).count(), 5, "{heading}");
        assert!(table.lines().nth(1).unwrap().starts_with(&seen["Id"].as_str().unwrap()[7..19]), "{table}");
        assert!(table.contains("0B") && !cli.ok(&["history", "--no-trunc", &image]).contains('…'), "{table}");

        assert_eq!(seen["Config"], config["config"]);
        for (key, told) in [("Created", "created"), ("Architecture", "architecture"), ("Os", "os")] {
            assert_eq!(seen[key], config[told], "{key}");
        }
        assert_eq!(seen["RootFS"]["Layers"], config["rootfs"]["diff_ids"]);
        assert_eq!(seen["RootFS"]["Type"], "layers");
        assert_eq!(seen["RepoTags"][0], image.as_str());
        assert!(seen["Metadata"]["LastTagTime"].as_str().unwrap().starts_with("20"), "{seen}");
        let directories = &seen["GraphDriver"]["Data"];
        for name in ["LowerDir", "UpperDir"] {
            for path in
                directories[name].as_str().unwrap_or_default().split(':').filter(|path| !path.is_empty())
            {
                assert!(Path::new(path).is_dir(), "{name}: {path}");
            }
        }
        assert_eq!(seen["GraphDriver"]["Name"], "overlay2");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_shows_its_images_configuration_with_its_own_over_it() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), super::pulled(agent, "nginx").await);
        cli.ok(&["run", "-d", "-q", "--name", "web", "-e", "A=b", "-l", "x=y", &image]);
        let (seen, own) = (inspect(agent, "web"), inspect(agent, &image));
        for key in ["Entrypoint", "Cmd", "ExposedPorts", "StopSignal", "WorkingDir"] {
            let same = seen["Config"][key] == own["Config"][key]
                || own["Config"][key].is_null() && seen["Config"][key] == "";
            assert!(same, "{key}: {} {}", seen["Config"][key], own["Config"][key]);
        }
        let env = |value: &Value| value["Config"]["Env"].as_array().cloned().unwrap_or_default();
        assert_eq!(env(&seen), [env(&own), vec!["A=b".into()]].concat());
        assert_eq!(seen["Config"]["Labels"]["x"], "y");
        assert_eq!(seen["Config"]["Image"], image.as_str());
        cli.ok(&["rm", "-f", "web"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_usage_tells_shared_from_unique_and_used_from_free() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), super::busybox(agent).await);
        let zstd = super::pulled(agent, "busybox-zstd").await;
        let nginx = super::pulled(agent, "nginx").await;
        cli.ok(&[
            "run",
            "-q",
            "--name",
            "writer",
            &image,
            "sh",
            "-c",
            "dd if=/dev/zero of=/x bs=1000 count=1000",
        ]);
        let usage = cli.json(&["system", "df"]);
        let of = |name: &str| {
            let images = usage["images"].as_array().unwrap();
            images.iter().find(|one| one["repo_tags"].to_string().contains(name)).cloned().unwrap()
        };
        assert_eq!(of(&zstd)["id"], of(&image)["id"], "one image, two names");
        let number = |value: &Value| value.as_u64().unwrap();
        assert!(number(&of(&nginx)["unique"]["bytes"]) > 1_000_000);
        assert!(number(&of(&image)["unique"]["inodes"]) > 1);
        assert_eq!((&of(&image)["containers"], &of(&nginx)["containers"]), (&1.into(), &0.into()));
        assert_eq!(usage["images_reclaimable"]["bytes"], of(&nginx)["unique"]["bytes"]);
        let written = &usage["containers"][0]["written"];
        assert!((1_000_000..1_100_000).contains(&number(&written["bytes"])), "{written}");
        let table = cli.ok(&["system", "df"]);
        assert!(
            table.starts_with("TYPE") && table.contains("Images") && table.contains("Containers"),
            "{table}"
        );
        assert!(cli.ok(&["system", "df", "-v"]).contains("UNIQUE SIZE"));
        let before = number(&usage["images_total"]["bytes"]);
        cli.ok(&["rmi", &nginx]);
        let after = number(&cli.json(&["system", "df"])["images_total"]["bytes"]);
        assert_eq!(before - after, number(&of(&nginx)["unique"]["bytes"]), "what it said it would give back");
        cli.ok(&["rm", "writer"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_we_save_other_tools_and_another_agent_read() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), super::busybox(agent).await);
        let nginx = super::pulled(agent, "nginx").await;
        cli.ok(&["tag", &image, "box:1"]);
        let file = agent.base().join("one.tar");
        let path = file.to_str().unwrap();
        cli.ok(&["save", "-o", path, "box:1"]);
        let seen = inspect(agent, "box:1");
        let id = seen["Id"].as_str().unwrap();
        // As an OCI layout: the manifest as it was pulled. As a Docker archive: the same configuration.
        let manifest =
            tool("skopeo", &["inspect", "--format", "{{.Digest}}", &format!("oci-archive:{path}")]);
        assert_eq!(manifest, seen["ManifestDigest"].as_str().unwrap());
        let raw = tool("skopeo", &["inspect", "--config", "--raw", &format!("docker-archive:{path}:box:1")]);
        let saved: Value = serde_json::from_str(&raw).unwrap();
        assert_eq!(saved["rootfs"]["diff_ids"], seen["RootFS"]["Layers"]);
        let layout = agent.base().join("layout");
        let copy = format!("oci:{}:x", layout.display());
        tool("skopeo", &["--insecure-policy", "copy", "-q", &format!("docker-archive:{path}"), &copy]);
        std::fs::remove_dir_all(layout).unwrap();

        // Several images, by a pipe and compressed on the way, into an agent that has none of them.
        let several = agent.base().join("several.tar.gz");
        let names = format!("box:1 {nginx}");
        shell(agent, &format!("$0 --socket $1 save {names} | gzip -1 > $2"), &several);
        with_agent(async |other| {
            let text = shell(other, "gzip -dc $2 | $0 --socket $1 load", &several);
            assert_eq!(text, format!("Loaded image: box:1\nLoaded image: {nginx}\n"));
            assert_eq!(inspect(other, "box:1")["Id"], id);
            assert_eq!(inspect(other, &nginx)["ManifestDigest"], inspect(agent, &nginx)["ManifestDigest"]);
            assert_eq!(other.cli().ok(&["run", "-q", "--rm", "box:1", "echo", "loaded"]), "loaded");
            let again = other.cli().ok(&["load", "-q", "-i", several.to_str().unwrap()]);
            assert_eq!(again.lines().count(), 2, "compressed, and once more: {again}");
        })
        .await;
        for file in [file, several] {
            std::fs::remove_file(file).unwrap();
        }
        let refused = cli.run(&["save", "nobody"]);
        assert!(refused.code == 1 && refused.stderr.contains("nobody"), "{refused:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_other_tools_write_we_load() {
    with_agent(async |agent| {
        let (cli, source) = (agent.cli(), format!("docker://{}", fixture().image("busybox")));
        let path = |name: &str| agent.base().join(name).display().to_string();
        let copy = |target: &str| {
            tool("skopeo", &["--insecure-policy", "copy", "-q", "--src-tls-verify=false", &source, target]);
        };
        copy(&format!("docker-archive:{}:skopeo/docker:1", path("docker.tar")));
        copy(&format!("oci-archive:{}:quay.io/skopeo/oci:2", path("oci.tar")));
        copy(&format!("oci:{}:x", path("layout")));
        let storage = ["--root", &path("storage"), "--runroot", &path("run"), "--storage-driver", "vfs"];
        let buildah = |arguments: &[&str]| tool("buildah", &[&storage[..], arguments].concat());
        let container = buildah(&["from", "--tls-verify=false", &fixture().image("busybox")]);
        buildah(&["config", "--cmd", "echo from buildah", &container]);
        buildah(&["commit", "-q", &container, "made"]);
        for kind in ["docker-archive", "oci-archive"] {
            let file = path(&format!("{kind}.tar"));
            buildah(&["push", "-q", "made", &format!("{kind}:{file}:buildah/{kind}:3")]);
        }
        let load = |file: &str| cli.ok(&["load", "-i", &path(file)]);
        assert_eq!(load("docker.tar"), "Loaded image: skopeo/docker:1");
        assert_eq!(load("oci.tar"), "Loaded image: quay.io/skopeo/oci:2");
        let both = "Loaded image: buildah/docker-archive:3\nLoaded image: localhost/made:latest";
        assert_eq!(load("docker-archive.tar"), both);
        assert_eq!(load("oci-archive.tar"), "Loaded image: buildah/oci-archive:3");
        assert_eq!(inspect(agent, "quay.io/skopeo/oci:2")["Id"], inspect(agent, "skopeo/docker:1")["Id"]);
        for name in ["skopeo/docker:1", "quay.io/skopeo/oci:2"] {
            assert_eq!(cli.ok(&["run", "-q", "--rm", name, "echo", "hello"]), "hello");
        }
        for name in ["buildah/docker-archive:3", "buildah/oci-archive:3"] {
            assert_eq!(cli.ok(&["run", "-q", "--rm", name]), "from buildah");
        }
        // A file that is no archive, and one that is cut short.
        let whole = std::fs::read(path("oci.tar")).unwrap();
        std::fs::write(path("cut.tar"), &whole[..whole.len() / 2]).unwrap();
        std::fs::write(path("text.tar"), "not a tar").unwrap();
        for file in ["cut.tar", "text.tar", "none.tar"] {
            let refused = cli.run(&["load", "-i", &path(file)]);
            assert!(
                refused.code == 1 && refused.stderr.contains("archive") | refused.stderr.contains(file),
                "{refused:?}"
            );
        }
        buildah(&["rm", "-a"]);
        for entry in std::fs::read_dir(agent.base()).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if name.ends_with(".tar") {
                std::fs::remove_file(entry.path()).unwrap();
            } else if ["layout", "storage", "run"].contains(&&*name) {
                std::fs::remove_dir_all(entry.path()).unwrap();
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_dockerd_saves_we_load_and_run_and_it_loads_what_we_save() {
    with_agent(async |agent| {
        let docker = Docker::start();
        let cli = agent.cli();
        let names = ["busybox", "nginx"].map(|name| fixture().image(name));
        names.iter().for_each(|name| drop(docker.run(&["pull", "-q", name])));
        docker.run(&["tag", &names[0], "from/docker:1"]);
        let file = agent.base().join("docker.tar");
        let path = file.to_str().unwrap();
        docker.run(&["save", "-o", path, "from/docker:1", &names[1]]);
        let loaded = cli.ok(&["load", "-i", path]);
        assert_eq!(loaded.lines().count(), 2, "{loaded}");
        assert!(loaded.contains("Loaded image: from/docker:1"), "{loaded}");
        assert_eq!(cli.ok(&["run", "-q", "--rm", "from/docker:1", "echo", "hello"]), "hello");
        let id = |name: &str| docker.run(&["inspect", "--format", "{{.Id}}", name]);
        for name in ["from/docker:1", &names[1]] {
            assert_eq!(inspect(agent, name)["Id"], id(name), "{name}");
        }
        // And back, into a dockerd that has it not.
        cli.ok(&["tag", "from/docker:1", "from/sampan:1"]);
        cli.ok(&["save", "-o", path, "from/sampan:1"]);
        docker.run(&["rmi", "-f", &id("from/docker:1")]);
        docker.run(&["load", "-q", "-i", path]);
        assert_eq!(inspect(agent, "from/sampan:1")["Id"], id("from/sampan:1"));
        std::fs::remove_file(file).unwrap();
    })
    .await;
}
