//! From a Dockerfile to steps and a configuration.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::build::{Finding, Ignore, Rule};

fn options() -> Options {
    let platform = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
    Options { platform: platform.clone(), build_platform: platform, ..Options::default() }
}

fn plan_with(text: &str, options: Options) -> Result<Plan, Box<Diagnostic>> {
    Plan::new(
        Dockerfile::parse("Dockerfile", text.as_bytes()).unwrap_or_else(|error| panic!("{error}")),
        options,
    )
}

fn plan(text: &str) -> Plan {
    plan_with(text, options()).unwrap_or_else(|error| panic!("{text}\n{error}"))
}

/// Evaluates the target; every image is an empty one.
fn evaluated_with(text: &str, options: Options) -> Result<Evaluated, Box<Diagnostic>> {
    let plan = plan_with(text, options)?;
    let mut done: BTreeMap<StageId, Evaluated> = BTreeMap::new();
    for id in plan.reached() {
        let stage = plan.stage(id);
        let foundation = match &stage.base {
            Base::Stage(below) => Foundation::stage(&done[below]),
            Base::Scratch | Base::Image(_) => Foundation::scratch(&stage.platform),
        };
        done.insert(id, plan.evaluate(id, &foundation)?);
    }
    Ok(done.remove(&plan.target()).unwrap())
}

fn evaluated(text: &str) -> Evaluated {
    evaluated_with(text, options()).unwrap_or_else(|error| panic!("{text}\n{error}"))
}

fn stage(text: &str) -> Evaluated {
    evaluated(&format!("FROM scratch\n{text}\n"))
}

fn run(evaluated: &Evaluated, index: usize) -> &Run {
    match &evaluated.steps[index].work {
        Work::Run(run) => run,
        other => panic!("{other:?}"),
    }
}

fn copy(evaluated: &Evaluated, index: usize) -> &Copy {
    match &evaluated.steps[index].work {
        Work::Copy(copy) => copy,
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_what_the_target_needs_is_reached() {
    let text = "FROM a AS base\nFROM base AS one\nFROM base AS two\nFROM b AS unused\nFROM scratch\n\
        COPY --from=one /x /\nCOPY --from=2 /y /\nCOPY --from=nginx:1 /z /\n";
    let plan = plan(text);
    assert_eq!(plan.reached(), [0, 1, 2, 4].map(StageId));
    assert_eq!(plan.stage(StageId(4)).images, ["nginx:1"]);
    let targeted = plan_with(text, Options { target: Some("TWO".into()), ..options() }).unwrap();
    assert_eq!((targeted.target(), targeted.reached()), (StageId(2), vec![StageId(0), StageId(2)]));
    let error = plan_with(text, Options { target: Some("onee".into()), ..options() }).unwrap_err();
    assert!(error.to_string().contains("did you mean one?"), "{error}");
}

#[test]
fn places_that_are_not_there_are_told() {
    for (text, part) in [
        ("FROM a\nCOPY --from=1 /x /\nFROM b\n", "does not come before"),
        ("FROM a\nCOPY --from=7 /x /\n", "there is no stage 7"),
        ("FROM a AS one\nCOPY --from=one /x /\n", "from itself"),
        ("FROM a AS one\nCOPY --from=two /x /\nFROM b AS two\n", "comes later"),
        ("ARG x\nFROM $x\n", "is empty here"),
        ("FROM $bse\n", "is empty here"),
        ("FROM --platform=banana a\n", "no platform"),
    ] {
        let error = plan_with(text, options()).unwrap_err().to_string();
        assert!(error.contains(part), "{text}\n{error}");
    }
}

#[test]
fn variables_are_put_in_where_docker_does() {
    let result = stage(
        "ARG version=1\nENV a=1 b=$a\nENV a=2 b=$a c=${version}\nRUN echo $a\nCOPY $a/$b /$c/\nWORKDIR /w/$a\nUSER $a\n\
         LABEL l=$b\nEXPOSE $a\nCMD echo $a",
    );
    let env: Vec<&str> =
        result.config.env.iter().map(String::as_str).filter(|pair| !pair.starts_with("PATH")).collect();
    assert_eq!(env, ["a=2", "b=1", "c=1"], "each instruction sees one moment");
    let runs = result.steps.iter().filter(|step| matches!(step.work, Work::Run(_))).count();
    assert_eq!(runs, 1);
    let index = result.steps.iter().position(|step| matches!(step.work, Work::Run(_))).unwrap();
    assert_eq!(run(&result, index).arguments, ["/bin/sh", "-c", "echo $a"]);
    assert!(run(&result, index).environment.contains(&"version=1".to_owned()));
    let index = result.steps.iter().position(|step| matches!(step.work, Work::Copy(_))).unwrap();
    assert!(matches!(&copy(&result, index).sources[0], Source::Path { path, .. } if path == "/2/1"));
    assert_eq!(copy(&result, index).destination, "/1/");
    assert_eq!((result.config.working_dir.as_str(), result.config.user.as_str()), ("/w/2", "2"));
    assert_eq!(result.config.labels["l"], "1");
    assert!(result.config.exposed_ports.contains_key("2/tcp"));
    assert_eq!(result.config.cmd.as_deref().unwrap(), ["/bin/sh", "-c", "echo $a"]);
}

#[test]
fn arguments_are_seen_where_they_are_declared() {
    let text = "ARG g=global\nFROM scratch AS one\nRUN a\nARG g\nRUN b\nFROM one\nRUN c\n";
    let result = evaluated(text);
    assert!(
        run(&result, 0).environment.contains(&"g=global".to_owned()),
        "arguments of the stage below stay"
    );
    let given: BTreeMap<String, String> = [("g".to_owned(), "given".to_owned())].into();
    let result = evaluated_with(text, Options { build_args: given.clone(), ..options() }).unwrap();
    assert!(run(&result, 0).environment.contains(&"g=given".to_owned()));
    let hidden =
        evaluated_with("FROM scratch\nENV g=env\nARG g\nRUN a\n", Options { build_args: given, ..options() });
    let hidden = hidden.unwrap();
    let index = hidden.steps.len() - 1;
    assert!(run(&hidden, index).environment.contains(&"g=env".to_owned()), "ENV wins");
}

#[test]
fn proxies_reach_the_process_and_nothing_else() {
    let given = [("HTTP_PROXY".to_owned(), "http://proxy:1".to_owned())].into();
    let result = evaluated_with("FROM scratch\nRUN a\n", Options { build_args: given, ..options() }).unwrap();
    let run = run(&result, 0);
    assert!(run.proxies.contains(&"HTTP_PROXY=http://proxy:1".to_owned()));
    assert!(!run.environment.iter().any(|pair| pair.contains("proxy")));
    assert!(!result.steps[0].history.contains("proxy"));
}

#[test]
fn histories_are_written_as_docker_writes_them() {
    let result = stage(
        "ARG v=1\nENV a=b\nRUN make all\nRUN [\"make\", \"one\"]\nCOPY x y /z/\nWORKDIR /w\nCMD [\"run\"]\nEXPOSE 80\n\
         VOLUME /data\nENTRYPOINT [\"entry\"]\nUSER app\nLABEL k=v\nSTOPSIGNAL SIGINT",
    );
    let histories: Vec<&str> = result.steps.iter().map(|step| step.history.as_str()).collect();
    for start in [
        "ARG v=1",
        "ENV a=b",
        "RUN |1 v=1 /bin/sh -c make all",
        "RUN |1 v=1 make one",
        "COPY x y /z/",
        "WORKDIR /w",
        "CMD [\"run\"]",
        "EXPOSE ",
        "VOLUME [/data]",
        "ENTRYPOINT [\"entry\"]",
        "USER app",
        "LABEL k=v",
        "STOPSIGNAL SIGINT",
    ] {
        assert!(histories.iter().any(|history| history.starts_with(start)), "{start}\n{histories:#?}");
    }
    let layers = result.steps.iter().filter(|step| !matches!(step.work, Work::Metadata)).count();
    assert_eq!(layers, 4, "two RUN, COPY, WORKDIR");
}

#[test]
fn entrypoints_and_commands_reset_each_other() {
    let base = Config { cmd: Some(vec!["old".into()]), working_dir: "/".into(), ..Config::default() };
    let plan = plan("FROM base\nENTRYPOINT [\"e\"]\n");
    let foundation = Foundation::image(base.clone(), plan.stage(StageId(0)).platform.clone(), String::new());
    assert_eq!(
        plan.evaluate(StageId(0), &foundation).unwrap().config.cmd,
        None,
        "the base's is not this entrypoint's"
    );
    let plan = super::tests::plan("FROM base\nCMD [\"c\"]\nENTRYPOINT [\"e\"]\n");
    let config = plan.evaluate(StageId(0), &foundation).unwrap().config;
    assert_eq!(config.cmd.as_deref().unwrap(), ["c"]);
}

#[test]
fn triggers_of_the_base_come_first_and_are_gone() {
    let on_build = vec!["RUN first".to_owned(), "COPY . /app".to_owned()];
    let base = Config { on_build, working_dir: "/".into(), ..Config::default() };
    let plan = plan("FROM base\nRUN second\nONBUILD RUN later\n");
    let foundation = Foundation::image(base, plan.stage(StageId(0)).platform.clone(), String::new());
    let result = plan.evaluate(StageId(0), &foundation).unwrap();
    assert_eq!(result.steps.iter().map(|step| step.trigger).collect::<Vec<_>>()[..3], [true, true, false]);
    assert_eq!(result.config.on_build, ["RUN later"]);
    assert_eq!(copy(&result, 1).from, Origin::Context);
}

#[test]
fn documents_become_scripts_files_and_input() {
    let result = stage(
        "RUN <<EOF\necho $HOME\nEOF\nRUN <<EOF\n#!/usr/bin/env python3\nprint(1)\nEOF\nARG who=you\nCOPY <<a <<\"b\" /d/\nhi $who\na\nhi $who\nb",
    );
    assert_eq!(run(&result, 0).arguments[..2], ["/bin/sh", "-c"]);
    assert!(run(&result, 0).arguments[2].contains("echo $HOME"), "{:?}", run(&result, 0).arguments);
    let script = run(&result, 1).script.as_ref().unwrap();
    assert!(script.content.starts_with("#!/usr/bin/env python3") && script.path.starts_with('/'));
    let files: Vec<(&str, &str)> = copy(&result, 3)
        .sources
        .iter()
        .map(|source| match source {
            Source::Inline { name, content } => (name.as_str(), content.as_str()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(files, [("a", "hi you\n"), ("b", "hi $who\n")]);
}

#[test]
fn mistakes_in_values_are_told_when_they_are_known() {
    for (text, parts) in [
        ("RUN --mount=type=cahce,target=/x y", &["Dockerfile:2", "cahce", "cache"][..]),
        ("ARG t=tmpfs\nRUN --mount=type=$t,target=/ y", &["Dockerfile:3"]),
        ("WORKDIR ${v?give it}", &["v: give it"]),
        ("EXPOSE 99999", &["99999"]),
        ("STOPSIGNAL NONSENSE", &["NONSENSE"]),
        ("COPY --chmod=999 a b", &["999"]),
        ("ADD --checksum=md5:0 http://x/y /", &["md5:0"]),
        ("COPY http://x/y /", &["ADD"]),
    ] {
        let error = evaluated_with(&format!("FROM scratch\n{text}\n"), options());
        let error = error.err().unwrap_or_else(|| panic!("this is taken:\n{text}")).to_string();
        for part in parts {
            assert!(error.contains(part), "{text}\n{error}\nlacks {part:?}");
        }
    }
}

#[test]
fn labels_of_the_request_win_and_only_in_the_target() {
    let labels = [("k".to_owned(), "asked".to_owned())].into();
    let result =
        evaluated_with("FROM scratch\nLABEL k=file l=file\n", Options { labels, ..options() }).unwrap();
    assert_eq!((result.config.labels["k"].as_str(), result.config.labels["l"].as_str()), ("asked", "file"));
}

#[test]
fn the_epoch_is_a_number() {
    let given = |text: &str| Options {
        build_args: [("SOURCE_DATE_EPOCH".to_owned(), text.to_owned())].into(),
        ..options()
    };
    assert_eq!(plan_with("FROM scratch\n", given("1700000000")).unwrap().epoch(), Some(1_700_000_000));
    assert!(plan_with("FROM scratch\n", given("soon")).unwrap_err().to_string().contains("no number"));
}

#[test]
fn arguments_that_nothing_declares_are_told() {
    let given = ["x", "y", "HTTP_PROXY"].map(|name| (name.to_owned(), "1".to_owned())).into();
    let plan = plan_with("FROM scratch\nARG x\n", Options { build_args: given, ..options() }).unwrap();
    assert_eq!(plan.unused_arguments(), ["y"]);
}

/// All findings of a file.
fn findings(text: &str) -> Vec<Finding> {
    let ignore = Some(Ignore::parse("ignored\n").unwrap());
    let build_args = [("v".to_owned(), "1".to_owned())].into();
    let options = Options { ignore, build_args, ..options() };
    let plan = plan_with(text, options).unwrap_or_else(|error| panic!("{text}\n{error}"));
    let mut done: BTreeMap<StageId, Evaluated> = BTreeMap::new();
    let mut all = plan.findings.clone();
    for stage in plan.stages() {
        let foundation = match &stage.base {
            Base::Stage(below) => Foundation::stage(&done[below]),
            Base::Scratch | Base::Image(_) => Foundation::scratch(&plan.options.platform),
        };
        let result = plan.evaluate(stage.id, &foundation).unwrap_or_else(|error| panic!("{text}\n{error}"));
        all.extend(result.findings.clone());
        done.insert(stage.id, result);
    }
    all
}

#[test]
fn each_check_finds_its_case_and_is_quiet_elsewhere() {
    for (rule, bad, good) in [
        (Rule::ConsistentInstructionCasing, "FROM scratch\nRUN a\nrun b\nRUN c", "from scratch\nrun b"),
        (Rule::CopyIgnoredFile, "FROM scratch\nCOPY ignored /", "FROM scratch\nCOPY other /"),
        (Rule::DuplicateStageName, "FROM a AS x\nFROM b AS X", "FROM a AS x\nFROM b AS y"),
        (Rule::ExposeInvalidFormat, "FROM scratch\nEXPOSE 80:80", "FROM scratch\nEXPOSE 80"),
        (Rule::ExposeProtoCasing, "FROM scratch\nEXPOSE 80/TCP", "FROM scratch\nEXPOSE 80/tcp"),
        (Rule::FromAsCasing, "FROM a as x", "FROM a AS x"),
        (
            Rule::FromPlatformFlagConstDisallowed,
            "FROM --platform=linux/amd64 a",
            "FROM --platform=linux/amd64 a AS x-amd64",
        ),
        (Rule::InvalidBaseImagePlatform, "FROM --platform=linux/arm64 a AS x-arm64", "FROM a"),
        (Rule::InvalidDefaultArgInFrom, "ARG v\nFROM a:$v", "ARG v=1\nFROM a:$v"),
        (Rule::JSONArgsRecommended, "FROM scratch\nCMD a", "FROM scratch\nCMD [\"a\"]"),
        (Rule::LegacyKeyValueFormat, "FROM scratch\nENV a b", "FROM scratch\nENV a=b"),
        (Rule::MaintainerDeprecated, "FROM scratch\nMAINTAINER me", "FROM scratch\nLABEL maintainer=me"),
        (
            Rule::MultipleInstructionsDisallowed,
            "FROM scratch\nCMD [\"a\"]\nCMD [\"b\"]",
            "FROM scratch\nCMD [\"b\"]",
        ),
        (
            Rule::NoEmptyContinuation,
            "FROM scratch\nRUN a && \\\n\n b",
            "FROM scratch\nRUN a && \\\n # note\n b",
        ),
        (
            Rule::RedundantTargetPlatform,
            "FROM --platform=$TARGETPLATFORM a",
            "FROM --platform=$BUILDPLATFORM a",
        ),
        (Rule::ReservedStageName, "FROM a AS context", "FROM a AS contexts"),
        (Rule::SecretsUsedInArgOrEnv, "FROM scratch\nARG API_TOKEN", "FROM scratch\nARG VERSION"),
        (Rule::StageNameCasing, "FROM a AS Build", "FROM a AS build"),
        (Rule::UndefinedArgInFrom, "FROM a$nope", "ARG nope=b\nFROM a$nope"),
        (Rule::UndefinedVar, "FROM scratch\nWORKDIR /x/$nope", "FROM scratch\nARG nope\nWORKDIR /x/$nope"),
        (Rule::WorkdirRelativePath, "FROM scratch\nWORKDIR x", "FROM scratch\nWORKDIR /x"),
    ] {
        let of = |text: &str| {
            findings(text).into_iter().filter(|finding| finding.rule == rule).collect::<Vec<_>>()
        };
        let found = of(bad);
        assert!(!found.is_empty(), "{rule} is quiet about\n{bad}");
        let diagnostic = &found[0].diagnostic;
        assert!(diagnostic.span.is_some() && diagnostic.help.is_some(), "{}", found[0]);
        assert_eq!(of(good), [], "{rule} cries about\n{good}");
        assert_eq!(of(&format!("# check=skip={rule}\n{bad}")), [], "{rule} is not skipped");
    }
}

proptest! {
    /// Whatever the file, its evaluation ends and nothing panics.
    #[test]
    fn no_file_is_too_odd(
        text in "(FROM a\n|FROM a AS b\n|RUN |COPY --from=b |ARG |ENV |WORKDIR |ONBUILD |\\$a|\\$\\{a:-b\\}|=|x| |\n|<<E\n|E\n|\"|/){0,40}"
    ) {
        if let Ok(dockerfile) = Dockerfile::parse("Dockerfile", text.as_bytes())
            && let Ok(plan) = Plan::new(dockerfile, options())
        {
            for stage in plan.stages() {
                let _ = plan.evaluate(stage.id, &Foundation::unknown(&stage.platform));
            }
        }
    }
}
