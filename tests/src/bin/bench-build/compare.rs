//! The same Dockerfile built by each, and what came of it side by side.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sampan_tests::fixture;
use serde_json::Value;

use super::builders::Builder;
use super::tree;

/// Keys of configurations in which builders differ by nature, and why.
const EXPLAINED: [(&str, &str); 3] = [
    ("Labels/io.buildah.version", "buildah writes its own version into every image"),
    ("ArgsEscaped", "a mark of docker's that means nothing on Linux"),
    ("WorkingDir", "nothing, and /, are the same"),
];

/// Builds and compares; fails if something differs that nothing explains.
pub(crate) fn compare(builders: &[Builder], names: &[String]) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("builds");
    let mut all: Vec<String> = fs::read_dir(&folder)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    all.retain(|name| names.is_empty() || names.contains(name));
    all.sort();
    ensure!(!all.is_empty(), "there is no such Dockerfile in {}", folder.display());
    let mut differing = 0;
    for name in &all {
        differing += one(builders, &folder.join(name), name).with_context(|| name.clone())?;
    }
    if differing > 0 {
        bail!("{differing} differences that nothing explains");
    }
    println!(
        "{} Dockerfiles, each built by {} builders: no difference that is not explained",
        all.len(),
        builders.len()
    );
    Ok(())
}

/// How many differences there are.
fn one(builders: &[Builder], folder: &PathBuf, name: &str) -> Result<usize> {
    let work = tempfile::Builder::new().prefix("sp-cmp-").tempdir_in("/tmp")?;
    let context = work.path().join("context");
    copy(folder, &context)?;
    let dockerfile = fs::read_to_string(context.join("Dockerfile"))?;
    let dockerfile = dockerfile.replace("FROM debian", &format!("FROM {}", fixture().debian()));
    fs::write(context.join("Dockerfile"), dockerfile)?;
    fs::write(context.join("apt.conf"), apt_options()?)?;
    let mut results = Vec::new();
    for (number, builder) in builders.iter().enumerate() {
        let cost = builder.build(&context, name, false)?;
        eprintln!("{name}: {} took {:.1} s", builder.name(), cost.wall.as_secs_f64());
        let (layout, bundle) =
            (work.path().join(format!("oci{number}")), work.path().join(format!("bundle{number}")));
        builder.export(name, &layout)?;
        let image = format!("{}:latest", layout.display());
        let output = Command::new("umoci").args(["unpack", "--image", &image]).arg(&bundle).output()?;
        ensure!(output.status.success(), "umoci: {}", String::from_utf8_lossy(&output.stderr));
        results.push((tree::read(&bundle.join("rootfs"))?, config(&layout)?));
    }
    let (own_tree, own_config) = &results[0];
    println!("{name}: {} names", own_tree.len());
    let mut found = 0;
    for (builder, (tree, config)) in builders.iter().zip(&results).skip(1) {
        let mut lines = tree::differences(own_tree, tree);
        lines.extend(differing_keys(own_config, config));
        for line in lines.iter().take(40) {
            println!("  {} {line}", builder.name());
        }
        found += lines.len();
    }
    Ok(found)
}

/// The configuration's keys with their values; empty ones are none.
fn config(layout: &Path) -> Result<BTreeMap<String, Value>> {
    let image = format!("oci:{}:latest", layout.display());
    let output = Command::new("skopeo").args(["inspect", "--config", &image]).output()?;
    ensure!(output.status.success(), "skopeo: {}", String::from_utf8_lossy(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout)?;
    let mut keys = BTreeMap::new();
    for (key, value) in document["config"].as_object().context("a configuration")? {
        match value {
            Value::Object(members) if key == "Labels" => {
                keys.extend(members.iter().map(|(name, value)| (format!("Labels/{name}"), value.clone())));
            }
            // Each name is there once, so their order means nothing; buildah has one that is set again last.
            Value::Array(variables) if key == "Env" => {
                let mut variables = variables.clone();
                variables.sort_by_key(Value::to_string);
                keys.insert(key.clone(), variables.into());
            }
            value => drop(keys.insert(key.clone(), value.clone())),
        }
    }
    let empty = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(members) => members.is_empty(),
        _ => false,
    };
    keys.retain(|_, value| !empty(value));
    Ok(keys)
}

fn differing_keys(one: &BTreeMap<String, Value>, other: &BTreeMap<String, Value>) -> Vec<String> {
    let names: std::collections::BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    let show = |value: Option<&Value>| value.map_or("nothing".to_owned(), Value::to_string);
    let root = |value: Option<&Value>| value.is_none_or(|value| value == "/");
    let explained = |name: &String| {
        EXPLAINED.iter().any(|(key, _)| key == name)
            && (name != "WorkingDir" || root(one.get(name)) && root(other.get(name)))
    };
    let differs = |name: &&&String| one.get(**name) != other.get(**name) && !explained(name);
    let line = |name: &String| format!("{name} is {} and not {}", show(other.get(name)), show(one.get(name)));
    names.iter().filter(differs).map(|name| line(name)).collect()
}

/// How apt fetches on this machine (proxies and the like).
fn apt_options() -> Result<String> {
    let output = Command::new("apt-config").arg("dump").output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let fetching = |line: &&str| {
        ["Acquire::http", "Acquire::ftp", "Acquire::Retries"].iter().any(|key| line.starts_with(key))
    };
    Ok(text.lines().filter(fetching).map(|line| format!("{line}\n")).collect())
}

fn copy(from: &PathBuf, to: &PathBuf) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy(&source, &target)?;
        } else {
            fs::copy(&source, &target)?;
        }
    }
    Ok(())
}
