//! Changes of an image's configuration, in the words of a Dockerfile: `ENV A=b`, `CMD ["x"]`.
//!
//! Pure: an instruction and a configuration give another configuration. Instructions that need a file system or a
//! build (RUN, COPY, FROM and so on) are refused by name.

use std::{iter::Peekable, str::Chars};

use serde_json::{Map, Value, json};

/// An instruction that changes nothing because it is wrong.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("change {instruction:?}: {reason}")]
pub struct ChangeError {
    instruction: String,
    reason: String,
}

type Reason = String;
type Config = Map<String, Value>;

/// Applies instructions in order. An ENTRYPOINT takes back the image's CMD, unless a CMD came before it.
pub fn apply_changes(config: &mut Config, instructions: &[String]) -> Result<(), ChangeError> {
    let mut command_set = false;
    for instruction in instructions {
        let failed = |reason| ChangeError { instruction: instruction.chars().take(200).collect(), reason };
        let (word, rest) = split(instruction);
        let word = word.to_ascii_uppercase();
        apply(config, &word, rest, &mut command_set).map_err(failed)?;
    }
    Ok(())
}

fn apply(config: &mut Config, word: &str, rest: &str, command_set: &mut bool) -> Result<(), Reason> {
    if word.is_empty() {
        return Err("it is empty".into());
    }
    if rest.is_empty() && !matches!(word, "CMD" | "ENTRYPOINT") {
        return Err(format!("{word} needs an argument"));
    }
    match word {
        "CMD" => {
            config.insert("Cmd".into(), command(config, rest));
            *command_set = true;
        }
        "ENTRYPOINT" => {
            config.insert("Entrypoint".into(), command(config, rest));
            if !*command_set {
                config.insert("Cmd".into(), Value::Null);
            }
        }
        "ENV" => {
            for (name, value) in pairs(config, rest)? {
                set_environment(config, &name, &value);
            }
        }
        "LABEL" => {
            for (name, value) in pairs(config, rest)? {
                entry(config, "Labels").insert(name, value.into());
            }
        }
        "EXPOSE" => {
            for word in words(config, rest)? {
                for port in ports(&word)? {
                    entry(config, "ExposedPorts").insert(port, json!({}));
                }
            }
        }
        "VOLUME" => {
            let paths = match json_list(rest) {
                Some(paths) => paths,
                None => words(config, rest)?,
            };
            for path in paths {
                if path.trim().is_empty() {
                    return Err("a volume has a path".into());
                }
                entry(config, "Volumes").insert(path, json!({}));
            }
        }
        "USER" => drop(config.insert("User".into(), one(config, rest)?.into())),
        "STOPSIGNAL" => drop(config.insert("StopSignal".into(), one(config, rest)?.into())),
        "WORKDIR" => {
            let now = config.get("WorkingDir").and_then(Value::as_str).unwrap_or_default();
            let path = join(now, &one(config, rest)?);
            config.insert("WorkingDir".into(), path.into());
        }
        "ONBUILD" => {
            let trigger = split(rest).0.to_ascii_uppercase();
            if matches!(trigger.as_str(), "ONBUILD" | "FROM" | "MAINTAINER") {
                return Err(format!("{trigger} cannot be a trigger of ONBUILD"));
            }
            let mut triggers = config.get("OnBuild").and_then(Value::as_array).cloned().unwrap_or_default();
            triggers.push(rest.into());
            config.insert("OnBuild".into(), triggers.into());
        }
        "HEALTHCHECK" => drop(config.insert("Healthcheck".into(), health_check(rest)?)),
        other => {
            return Err(format!(
                "{other} is not one of CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, \
                 VOLUME and WORKDIR"
            ));
        }
    }
    Ok(())
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    text.split_once(char::is_whitespace).map_or((text, ""), |(word, rest)| (word, rest.trim()))
}

fn entry<'c>(config: &'c mut Config, key: &str) -> &'c mut Config {
    let value = config.entry(key).or_insert(Value::Null);
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("it was made one")
}

fn json_list(text: &str) -> Option<Vec<String>> {
    serde_json::from_str(text).ok()
}

/// The JSON form as it is, the shell form for the image's shell.
fn command(config: &Config, text: &str) -> Value {
    if let Some(list) = json_list(text) {
        return json!(list);
    }
    if text.is_empty() {
        return json!([]);
    }
    let shell = config.get("Shell").and_then(Value::as_array).filter(|shell| !shell.is_empty()).cloned();
    let mut words = shell.unwrap_or_else(|| vec!["/bin/sh".into(), "-c".into()]);
    words.push(text.into());
    words.into()
}

fn set_environment(config: &mut Config, name: &str, value: &str) {
    let mut all = config.get("Env").and_then(Value::as_array).cloned().unwrap_or_default();
    let pair = Value::from(format!("{name}={value}"));
    let same = |other: &&mut Value| other.as_str().is_some_and(|other| other.split('=').next() == Some(name));
    match all.iter_mut().find(same) {
        Some(place) => *place = pair,
        None => all.push(pair),
    }
    config.insert("Env".into(), all.into());
}

fn variable(config: &Config, name: &str) -> String {
    let all = config.get("Env").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let value =
        all.iter().filter_map(Value::as_str).find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    value.unwrap_or_default().to_owned()
}

/// `A=b "C D"=e`, or the old form `A the rest`.
fn pairs(config: &Config, text: &str) -> Result<Vec<(String, String)>, Reason> {
    let (first, rest) = split(text);
    if !first.contains('=') {
        if rest.is_empty() {
            return Err(format!("{first:?} has no value: NAME=VALUE"));
        }
        return Ok(vec![(
            first.to_owned(),
            words(config, &format!("\"{}\"", rest.replace('"', "\\\"")))?.concat(),
        )]);
    }
    let pair = |word: String| match word.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{word:?} is not NAME=VALUE")),
    };
    words(config, text)?.into_iter().map(pair).collect()
}

fn one(config: &Config, text: &str) -> Result<String, Reason> {
    match words(config, text)?.as_slice() {
        [word] if !word.is_empty() => Ok(word.clone()),
        _ => Err("it takes exactly one argument".into()),
    }
}

/// Words as a shell would cut them, with the image's variables put in.
fn words(config: &Config, text: &str) -> Result<Vec<String>, Reason> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut rest = text.chars().peekable();
    while let Some(character) = rest.next() {
        match (character, quote) {
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            ('\'' | '"', None) => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (c, Some(open)) if c == open => quote = None,
            ('\\', None | Some('"')) => {
                let word = word.get_or_insert_default();
                match rest.next() {
                    Some(next @ ('"' | '\\' | '$')) => word.push(next),
                    Some(next) if quote.is_none() => word.push(next),
                    Some(next) => word.extend(['\\', next]),
                    None => word.push('\\'),
                }
            }
            ('$', None | Some('"')) => {
                let value = expansion(config, &mut rest)?;
                word.get_or_insert_default().push_str(&value);
            }
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    if let Some(open) = quote {
        return Err(format!("the quote {open} is not closed"));
    }
    words.extend(word);
    Ok(words)
}

/// What `$NAME` or `${NAME}` stands for; the dollar is behind us.
fn expansion(config: &Config, rest: &mut Peekable<Chars<'_>>) -> Result<String, Reason> {
    let braces = rest.next_if_eq(&'{').is_some();
    let mut name = String::new();
    while let Some(c) = rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
        name.push(c);
    }
    if braces && (rest.next() != Some('}') || name.is_empty()) {
        return Err("a variable is $NAME or ${NAME}".into());
    }
    Ok(if name.is_empty() { "$".to_owned() } else { variable(config, &name) })
}

/// `80`, `53/udp`, `8000-8003`.
fn ports(text: &str) -> Result<Vec<String>, Reason> {
    let wrong = || format!("{text:?} is not PORT, PORT/PROTOCOL or FIRST-LAST");
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(wrong());
    }
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let (first, last) =
        port(first).zip(port(last)).filter(|(first, last)| first <= last).ok_or_else(wrong)?;
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

fn join(now: &str, path: &str) -> String {
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{now}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// `NONE`, or options and `CMD …`. Times are nanoseconds in an image.
fn health_check(text: &str) -> Result<Value, Reason> {
    let mut check = json!({});
    let mut rest = text;
    while let Some(option) = rest.strip_prefix("--") {
        let (option, after) = split(option);
        let (name, value) = option.split_once('=').ok_or_else(|| format!("--{option} has no value"))?;
        let (key, value) = match name {
            "interval" => ("Interval", duration(value)?),
            "timeout" => ("Timeout", duration(value)?),
            "start-period" => ("StartPeriod", duration(value)?),
            "start-interval" => ("StartInterval", duration(value)?),
            "retries" => {
                ("Retries", value.parse().map_err(|_| format!("{value:?} is no number of retries"))?)
            }
            other => return Err(format!("--{other} is no option of HEALTHCHECK")),
        };
        check[key] = value.into();
        rest = after;
    }
    let (word, command_text) = split(rest);
    check["Test"] = match word.to_ascii_uppercase().as_str() {
        "NONE" if command_text.is_empty() => json!(["NONE"]),
        "CMD" if !command_text.is_empty() => match json_list(command_text) {
            Some(list) => std::iter::once("CMD".to_owned()).chain(list).collect(),
            None => json!(["CMD-SHELL", command_text]),
        },
        _ => return Err("it is NONE, or options and CMD with a command".into()),
    };
    Ok(check)
}

/// `1m30s`, `500ms`.
fn duration(text: &str) -> Result<i64, Reason> {
    let wrong = || format!("{text:?} is no time: 30s, 1m30s, 500ms");
    let (mut total, mut rest) = (0.0, text);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        let after = &rest[digits..];
        let unit = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let scale = match &after[..unit] {
            "h" => 3600e9,
            "m" => 60e9,
            "s" => 1e9,
            "ms" => 1e6,
            "us" | "µs" => 1e3,
            "ns" => 1.0,
            _ => return Err(wrong()),
        };
        total += number * scale;
        rest = &after[unit..];
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total as i64) }
}
