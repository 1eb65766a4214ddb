//! From text to instructions, and what is said of text that is none.

use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Dockerfile {
    Dockerfile::parse("Dockerfile", text.as_bytes()).unwrap_or_else(|error| panic!("{text}\n{error}"))
}

/// The instructions after `FROM scratch`.
fn commands(text: &str) -> Vec<Command> {
    let dockerfile = parse(&format!("FROM scratch\n{text}\n"));
    dockerfile.stages[0].instructions.iter().map(|instruction| instruction.command.clone()).collect()
}

fn command(text: &str) -> Command {
    commands(text).remove(0)
}

fn error(text: &str) -> String {
    let parsed = Dockerfile::parse("Dockerfile", text.as_bytes());
    parsed.err().unwrap_or_else(|| panic!("this is taken:\n{text}")).to_string()
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|&word| word.to_owned()).collect()
}

#[test]
fn every_instruction_is_read() {
    let text = "ARG base=scratch\nFROM --platform=linux/amd64 ${base} AS Build\nADD a /b\nARG x=1 y\nCMD [\"a\", \"b\"]\n\
        COPY a b/\nENTRYPOINT run it\nENV a=1 b=\"2 3\"\nEXPOSE 80 443/tcp\nHEALTHCHECK --interval=5s CMD true\n\
        LABEL k=v\nMAINTAINER somebody\nONBUILD RUN make\nRUN make\nSHELL [\"/bin/bash\", \"-c\"]\nSTOPSIGNAL SIGTERM\n\
        USER app:app\nVOLUME /data /more\nWORKDIR /w\n";
    let dockerfile = parse(text);
    assert_eq!(dockerfile.globals.len(), 1);
    let stage = &dockerfile.stages[0];
    assert_eq!((stage.base.as_str(), stage.platform.as_deref()), ("${base}", Some("linux/amd64")));
    assert_eq!(
        (stage.alias.clone(), stage.name().as_deref()),
        (Some(("AS".into(), "Build".into())), Some("build"))
    );
    let commands: Vec<&Command> = stage.instructions.iter().map(|instruction| &instruction.command).collect();
    assert_eq!(commands.len(), 17);
    assert_eq!(*commands[2], Command::Cmd(CommandLine::Exec(words(&["a", "b"]))));
    assert_eq!(*commands[4], Command::Entrypoint(CommandLine::Shell("run it".into())));
    assert_eq!(*commands[6], Command::Expose(words(&["80", "443/tcp"])));
    assert_eq!(*commands[10], Command::Onbuild("RUN make".into()));
    assert_eq!(*commands[12], Command::Shell(words(&["/bin/bash", "-c"])));
    assert_eq!(*commands[15], Command::Volume(words(&["/data", "/more"])));
}

#[test]
fn lines_go_on_past_escapes_comments_and_empty_lines() {
    let Command::Run(run) = command("RUN a && \\\n  # a note\n\n  b \\\n  c") else { panic!() };
    let CommandLine::Shell(text) = run.command else { panic!() };
    assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["a", "&&", "b", "c"]);
    let dockerfile = parse("# escape=`\nFROM scratch\nRUN dir `\n c:\\\n");
    let Command::Run(run) = &dockerfile.stages[0].instructions[0].command else { panic!() };
    let CommandLine::Shell(text) = &run.command else { panic!() };
    assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["dir", "c:\\"]);
}

#[test]
fn forms_of_commands() {
    for (text, expected) in [
        ("CMD [\"a\"]", CommandLine::Exec(words(&["a"]))),
        ("CMD  [ \"a\" , \"b c\" ] ", CommandLine::Exec(words(&["a", "b c"]))),
        ("CMD [a]", CommandLine::Shell("[a]".into())),
        ("CMD ['a']", CommandLine::Shell("['a']".into())),
        ("CMD echo \"$x\"", CommandLine::Shell("echo \"$x\"".into())),
    ] {
        assert_eq!(command(text), Command::Cmd(expected), "{text}");
    }
}

#[test]
fn pairs_are_read_with_quotes_and_in_the_old_form() {
    let pair = |name: &str, value: &str, legacy| Pair { name: name.into(), value: value.into(), legacy };
    assert_eq!(
        command("ENV a=1 b=\"2 3\" c=4\\ 5 d="),
        Command::Env(vec![
            pair("a", "1", false),
            pair("b", "\"2 3\"", false),
            pair("c", "4\\ 5", false),
            pair("d", "", false)
        ])
    );
    assert_eq!(command("ENV a one two"), Command::Env(vec![pair("a", "one two", true)]));
}

#[test]
fn documents_belong_to_their_instruction() {
    let parsed =
        commands("RUN <<EOF\necho one\n  echo two\nEOF\nRUN cat <<-'A' <<B\n\tx $y\nA\nz\nB\nUSER last");
    let [Command::Run(first), Command::Run(second), Command::User(_)] = &parsed[..] else {
        panic!("{parsed:?}")
    };
    assert_eq!(first.heredocs[0].content, "echo one\n  echo two\n");
    let [a, b] = &second.heredocs[..] else { panic!() };
    assert_eq!((a.name.as_str(), a.expand, a.text().as_str()), ("A", false, "x $y\n"));
    assert_eq!((b.name.as_str(), b.expand, b.content.as_str()), ("B", true, "z\n"));
    let Command::Copy(copy) = command("COPY <<page.html /srv/\n<h1>$title</h1>\npage.html") else { panic!() };
    let [SourceText::Inline(document)] = &copy.sources[..] else { panic!() };
    assert_eq!((document.name.as_str(), document.content.as_str()), ("page.html", "<h1>$title</h1>\n"));
}

#[test]
fn flags_of_copies_and_runs() {
    let Command::Copy(copy) = command(
        "COPY --from=build --chown=1:2 --chmod=u+x --link --parents --exclude=*.o --exclude=*.a a b /c/",
    ) else {
        panic!()
    };
    assert_eq!((copy.from.as_deref(), copy.owner.as_deref()), (Some("build"), Some("1:2")));
    assert_eq!((copy.link, copy.parents, copy.exclude), (true, true, words(&["*.o", "*.a"])));
    assert_eq!((copy.sources.len(), copy.destination.as_str()), (2, "/c/"));
    let Command::Run(run) = command(
        "RUN --mount=type=cache,target=/root/.cache --mount=type=secret,id=token --network=none make",
    ) else {
        panic!()
    };
    assert_eq!((run.mounts.len(), run.network), (2, crate::build::plan::Network::None));
}

#[test]
fn mistakes_show_their_line_and_the_fix() {
    for (text, parts) in [
        ("", &["no instructions", "FROM"][..]),
        ("RUN make\n", &["Dockerfile:1", "FROM"]),
        ("FROM scratch\nRUNN make\n", &["Dockerfile:2", "RUNN make", "RUN"]),
        ("FROM scratch\nCOPY a\n", &["Dockerfile:2", "COPY a"]),
        ("FROM scratch\nCOPY --form=x a b\n", &["--form", "--from"]),
        ("FROM scratch\nENV\n", &["Dockerfile:2", "ENV"]),
        ("FROM scratch\nENV =x\n", &["Dockerfile:2"]),
        ("FROM scratch\nSHELL sh -c\n", &["Dockerfile:2", "SHELL", "["]),
        ("FROM scratch\nRUN cat <<EOF\nno end\n", &["EOF"]),
        ("FROM scratch\nONBUILD ONBUILD RUN x\n", &["ONBUILD"]),
        ("FROM scratch\nONBUILD FROM x\n", &["FROM"]),
        ("FROM scratch\nHEALTHCHECK --interval=soon CMD x\n", &["soon"]),
        ("FROM a b c\n", &["Dockerfile:1"]),
        ("FROM scratch AS 1x\n", &["1x"]),
        ("# syntax=evil/frontend:1\nFROM scratch\n", &["evil/frontend:1"]),
        ("# escape=x\nFROM scratch\n", &["escape"]),
    ] {
        let told = error(text);
        for part in parts {
            assert!(told.contains(part), "{text}\n{told}\nlacks {part:?}");
        }
    }
}

proptest! {
    /// Whatever the text, it is read in time and nothing panics.
    #[test]
    fn no_text_is_too_odd(text in "(FROM a|RUN|COPY|ENV| |\n|\\\\\n|<<E|E\n|\"|'|\\[|\\]|\\{|\\$|=|--|#|,|a|:|é){0,60}") {
        let _ = Dockerfile::parse("Dockerfile", text.as_bytes());
    }
}
