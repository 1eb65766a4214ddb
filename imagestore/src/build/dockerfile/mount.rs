//! `RUN --mount`: the fields as written, and what they amount to once their variables are put in.

use crate::build::plan::{Mount, MountKind, Origin, Sharing};

use super::{Span, instruction::Mistake, suggest::nearest};

const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "src",
    "target",
    "dst",
    "destination",
    "readonly",
    "ro",
    "readwrite",
    "rw",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "env",
];
const TYPES: [&str; 5] = ["bind", "cache", "tmpfs", "secret", "ssh"];

/// A mount as written: keys in lower case, values not expanded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MountText {
    pub(crate) fields: Vec<(String, Option<String>)>,
}

impl MountText {
    /// Reads fields parted by commas.
    pub(super) fn parse(text: &str, span: Span) -> Result<MountText, Mistake> {
        let mut fields = Vec::new();
        for field in split(text) {
            let (key, value) = match field.split_once('=') {
                Some((key, value)) => (key, Some(value.to_owned())),
                None => (field.as_str(), None),
            };
            let key = key.to_ascii_lowercase();
            if !KEYS.contains(&key.as_str()) {
                let help = match nearest(&key, KEYS) {
                    Some(meant) => format!("did you mean {meant}?"),
                    None => format!("a mount has {}", KEYS.join(", ")),
                };
                return Err(Mistake::new(span, format!("a mount has no {key:?}"), help));
            }
            let flag = matches!(key.as_str(), "readonly" | "ro" | "readwrite" | "rw" | "required");
            if value.is_none() && !flag {
                return Err(Mistake::new(span, format!("{key} has no value"), format!("write {key}=VALUE")));
            }
            if key == "from" && value.as_ref().is_some_and(|value| value.contains('$')) {
                return Err(Mistake::new(
                    span,
                    "from takes no variables",
                    "give the image a stage of its own, FROM $… AS name, and write from=name",
                ));
            }
            fields.push((key, value));
        }
        Ok(MountText { fields })
    }

    /// The stage or image to mount from.
    pub(crate) fn from(&self) -> Option<&str> {
        self.fields.iter().rev().find(|(key, _)| key == "from").and_then(|(_, value)| value.as_deref())
    }

    /// The mount itself. `from` is what its `from` was found to be; relative targets begin at `directory`.
    pub(crate) fn resolve(
        &self,
        from: Option<Origin>,
        directory: &str,
        expand: &mut dyn FnMut(&str) -> Result<String, String>,
    ) -> Result<Mount, String> {
        let mut fields = Fields::default();
        for (key, value) in &self.fields {
            let value = value.as_deref().map(&mut *expand).transpose()?;
            fields.set(key, value)?;
        }
        fields.mount(from, directory)
    }
}

fn split(text: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => fields.last_mut().expect("there is always one").push(c),
        }
    }
    fields
}

#[derive(Default)]
struct Fields {
    kind: String,
    source: String,
    target: String,
    id: String,
    read_only: Option<bool>,
    required: bool,
    size: Option<u64>,
    sharing: Option<Sharing>,
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    variable: Option<String>,
}

impl Fields {
    fn kind(&self) -> &str {
        if self.kind.is_empty() { "bind" } else { &self.kind }
    }

    fn set(&mut self, key: &str, value: Option<String>) -> Result<(), String> {
        let text = value.clone().unwrap_or_default();
        let yes = || match value.as_deref() {
            None => Ok(true),
            Some("1" | "t" | "T" | "true" | "True" | "TRUE") => Ok(true),
            Some("0" | "f" | "F" | "false" | "False" | "FALSE") => Ok(false),
            Some(other) => Err(format!("{key}={other} is neither true nor false")),
        };
        let number = |radix| {
            u32::from_str_radix(&text, radix).map(Some).map_err(|_| format!("{key}={text} is no number"))
        };
        match key {
            "type" => {
                self.kind = text.to_ascii_lowercase();
                if !TYPES.contains(&self.kind.as_str()) {
                    let meant = nearest(&text, TYPES).map(|meant| format!("; did you mean {meant}?"));
                    let known = format!("; there are {}", TYPES.join(", "));
                    return Err(format!("there are no mounts of type {text:?}{}", meant.unwrap_or(known)));
                }
            }
            "source" | "src" => self.source = text,
            "target" | "dst" | "destination" => self.target = text,
            "id" => self.id = text,
            "readonly" | "ro" => self.read_only = Some(yes()?),
            "readwrite" | "rw" => self.read_only = Some(!yes()?),
            "required" => self.required = yes()?,
            "size" => {
                self.size = Some(size(&text).ok_or_else(|| format!("size={text} is no size; 64m, 1g"))?)
            }
            "sharing" => {
                self.sharing = Some(match text.to_ascii_lowercase().as_str() {
                    "shared" => Sharing::Shared,
                    "private" => Sharing::Private,
                    "locked" => Sharing::Locked,
                    _ => return Err(format!("sharing={text} is none of shared, private and locked")),
                });
            }
            "mode" => self.mode = number(8)?,
            "uid" => self.uid = number(10)?,
            "gid" => self.gid = number(10)?,
            "env" => self.variable = Some(text),
            _ => {}
        }
        Ok(())
    }

    /// Keys that say nothing for a type are mistakes.
    fn check(&self, from: &Option<Origin>) -> Result<(), String> {
        let kind = self.kind();
        let file = matches!(kind, "secret" | "cache");
        let wrong = [
            ("required", self.required && kind != "secret"),
            ("size", self.size.is_some() && kind != "tmpfs"),
            ("sharing", self.sharing.is_some() && kind != "cache"),
            ("mode", self.mode.is_some() && !file),
            ("uid", self.uid.is_some() && !file),
            ("gid", self.gid.is_some() && !file),
            ("from", from.is_some() && matches!(kind, "secret" | "tmpfs")),
            ("env", self.variable.is_some() && kind != "secret"),
        ];
        match wrong.iter().find(|(_, wrong)| *wrong) {
            Some((key, _)) => Err(format!("a mount of type {kind} has no {key}")),
            None => Ok(()),
        }
    }

    fn mount(self, from: Option<Origin>, directory: &str) -> Result<Mount, String> {
        self.check(&from)?;
        let source = clean("/", &self.source);
        let kind = match self.kind() {
            "secret" => return self.secret(directory),
            "ssh" => return Err("mounts of type ssh are not supported yet; use a secret".to_owned()),
            "tmpfs" => MountKind::Tmpfs { size: self.size },
            "cache" => MountKind::Cache {
                id: if self.id.is_empty() { clean(directory, &self.target) } else { self.id.clone() },
                from: from.unwrap_or(Origin::Scratch),
                source,
                sharing: self.sharing.unwrap_or_default(),
                writable: !self.read_only.unwrap_or(false),
                uid: self.uid.unwrap_or(0),
                gid: self.gid.unwrap_or(0),
                mode: self.mode.unwrap_or(0o755),
            },
            _ => MountKind::Bind {
                from: from.unwrap_or(Origin::Context),
                source,
                writable: !self.read_only.unwrap_or(true),
            },
        };
        let target = clean(directory, &self.target);
        if self.target.is_empty() || target == "/" {
            return Err("a mount needs a target below /; write target=PATH".to_owned());
        }
        Ok(Mount { target, kind })
    }

    fn secret(self, directory: &str) -> Result<Mount, String> {
        let id = match (self.source.as_str(), self.id.as_str()) {
            ("", "") => self.target.rsplit('/').next().unwrap_or_default(),
            ("", id) => id,
            (source, "") => source,
            _ => return Err("a secret has a source or an id, and not both".to_owned()),
        };
        if id.is_empty() {
            return Err("a secret needs an id; write id=NAME".to_owned());
        }
        let name = id.rsplit('/').next().unwrap_or_default();
        let target = match (self.target.as_str(), &self.variable) {
            ("", Some(_)) => String::new(),
            ("", None) => format!("/run/secrets/{name}"),
            (target, _) => clean(directory, target),
        };
        if target == "/" || target == "/run/secrets/" {
            return Err("a secret needs a target below /; write target=PATH".to_owned());
        }
        // An empty name is that of the secret.
        let variable = self.variable.map(|given| if given.is_empty() { name.to_owned() } else { given });
        Ok(Mount {
            target,
            kind: MountKind::Secret {
                id: id.to_owned(),
                required: self.required,
                variable,
                uid: self.uid.unwrap_or(0),
                gid: self.gid.unwrap_or(0),
                mode: self.mode.unwrap_or(0o400),
            },
        })
    }
}

/// `64m`, `1.5g`, `1000`: powers of 1024.
fn size(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let lower = lower.strip_suffix('b').unwrap_or(&lower);
    let lower = lower.strip_suffix('i').unwrap_or(lower);
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let power = match lower[digits.len()..].trim() {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    let number: f64 = digits.trim().parse().ok()?;
    let bytes = number * 1024f64.powi(power);
    (0.0..9e18).contains(&bytes).then_some(bytes as u64)
}

/// `path` seen from `base`: absolute, without `.`, `..`, and slashes too many.
pub(crate) fn clean(base: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let base = if path.starts_with('/') { "" } else { base };
    for part in base.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(text: &str) -> Result<Mount, String> {
        let fields = MountText::parse(text, Span::default()).map_err(|mistake| mistake.message)?;
        fields.resolve(fields.from().map(|name| Origin::Image(name.to_owned())), "/app", &mut |text| {
            Ok(text.into())
        })
    }

    #[test]
    fn what_is_not_written_has_its_default() {
        let bind = MountKind::Bind { from: Origin::Context, source: "/".into(), writable: false };
        assert_eq!(mount("target=src").unwrap(), Mount { target: "/app/src".into(), kind: bind });
        let cache = mount("type=cache,target=/root/.cache").unwrap();
        assert_eq!(
            cache.kind,
            MountKind::Cache {
                id: "/root/.cache".into(),
                from: Origin::Scratch,
                source: "/".into(),
                sharing: Sharing::Shared,
                writable: true,
                uid: 0,
                gid: 0,
                mode: 0o755,
            }
        );
        let secret = |text| match mount(text).unwrap() {
            Mount { target, kind: MountKind::Secret { id, variable, mode, .. } } => {
                (target, id, variable, mode)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(secret("type=secret,id=aws"), ("/run/secrets/aws".into(), "aws".into(), None, 0o400));
        assert_eq!(secret("type=secret,target=/a/key").1, "key");
        assert_eq!(
            secret("type=secret,id=T,env=TOKEN"),
            ("".into(), "T".into(), Some("TOKEN".into()), 0o400)
        );
        assert_eq!(secret("type=secret,id=T,env=X,target=f").0, "/app/f");
        let tmpfs = mount("type=tmpfs,target=/t,size=1.5k").unwrap();
        assert_eq!(tmpfs.kind, MountKind::Tmpfs { size: Some(1536) });
    }

    #[test]
    fn keys_are_those_of_dockers_documentation() {
        let written = mount("type=bind,from=img,src=../a/./b,dst=/x/,rw").unwrap();
        let kind =
            MountKind::Bind { from: Origin::Image("img".into()), source: "/a/b".into(), writable: true };
        assert_eq!(written, Mount { target: "/x".into(), kind });
        assert!(matches!(
            mount("type=cache,target=/c,readonly=true,sharing=LOCKED").unwrap().kind,
            MountKind::Cache { writable: false, sharing: Sharing::Locked, .. }
        ));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("tpye=bind,target=/a", "no \"tpye\""),
            ("type=bnid,target=/a", "did you mean bind?"),
            ("type=tmpfs,target=/", "below /"),
            ("type=cache", "needs a target"),
            ("type=bind,target=/a,mode=0700", "has no mode"),
            ("type=secret", "needs an id"),
            ("type=secret,id=a,src=b", "not both"),
            ("type=secret,id=a,from=b", "has no from"),
            ("type=ssh", "not supported yet"),
            ("target", "no value"),
            ("type=bind,target=/a,from=$x", "no variables"),
            ("type=tmpfs,target=/a,size=big", "no size"),
            ("type=cache,target=/a,uid=-1", "no number"),
            ("type=cache,target=/a,ro=perhaps", "neither"),
        ] {
            let error = mount(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
