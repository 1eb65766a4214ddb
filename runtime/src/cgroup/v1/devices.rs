//! The `devices` controller: an allow list, written line by line.
//!
//! When the present list is one of exceptions already, only the difference is written: what stays allowed is never
//! refused in between, and a cgroup with children, which the kernel lets nobody reset, can be updated.

use crate::cgroup::Error;
use crate::cgroup::devices::{ALL, Devices, Kind, MKNOD, READ, Rule, Sum, WRITE, sum};
use crate::cgroup::directory::Directory;

/// Puts `rules` in force, or leaves the old ones there.
pub(super) fn apply(directory: &Directory, rules: &[Rule]) -> Result<(), Error> {
    let old = directory.read("devices.list")?;
    write(directory, rules, &old).inspect_err(|_| {
        // What is reported is why the new list was refused.
        let _ = restore(directory, &old);
    })
}

fn write(directory: &Directory, rules: &[Rule], old: &str) -> Result<(), Error> {
    match sum(rules) {
        Sum::Everything => directory.write("devices.allow", "a"),
        Sum::Only(wanted) => {
            let old: Vec<Rule> = match old.lines().map(parse).collect::<Option<_>>() {
                Some(old) => old,
                // Everything was allowed.
                None => {
                    directory.write("devices.deny", "a")?;
                    Vec::new()
                }
            };
            let surplus = old.iter().filter_map(|rule| {
                let kept = wanted.iter().find(|wanted| wanted.devices == rule.devices);
                let access = rule.access & !kept.map_or(0, |kept| kept.access);
                (access != 0).then(|| text(&Rule { access, ..*rule }))
            });
            directory.write_each("devices.deny", surplus)?;
            directory.write_each("devices.allow", wanted.iter().map(text))
        }
        Sum::Ordered => {
            directory.write("devices.deny", "a")?;
            // Consecutive rules of a kind share an open file.
            for group in rules.chunk_by(|a, b| a.allow == b.allow) {
                let name = if group[0].allow { "devices.allow" } else { "devices.deny" };
                directory.write_each(name, group.iter().map(text))?;
            }
            Ok(())
        }
    }
}

fn restore(directory: &Directory, old: &str) -> Result<(), Error> {
    if old.lines().all(|line| parse(line).is_some()) {
        directory.write_each("devices.allow", old.lines())
    } else {
        directory.write("devices.allow", "a")
    }
}

/// `c 1:3 rwm`
fn text(rule: &Rule) -> String {
    let kind = match rule.devices.kind {
        Kind::Block => 'b',
        Kind::Char => 'c',
    };
    let number = |value: Option<u32>| value.map_or("*".to_owned(), |value| value.to_string());
    let access: String = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')]
        .iter()
        .filter(|(bit, _)| rule.access & bit != 0)
        .map(|(_, c)| c)
        .collect();
    format!("{kind} {}:{} {access}", number(rule.devices.major), number(rule.devices.minor))
}

/// A line of `devices.list`; None for the one that stands for everything.
fn parse(line: &str) -> Option<Rule> {
    let mut words = line.split([' ', ':']);
    let kind = match words.next()? {
        "b" => Kind::Block,
        "c" => Kind::Char,
        _ => return None,
    };
    let mut number = || match words.next()? {
        "*" => Some(None),
        digits => digits.parse().ok().map(Some),
    };
    let (major, minor) = (number()?, number()?);
    let bits = words.next()?.bytes().fold(0, |bits, letter| {
        bits | match letter {
            b'r' => READ,
            b'w' => WRITE,
            b'm' => MKNOD,
            _ => 0,
        }
    });
    Some(Rule { allow: true, devices: Devices { kind, major, minor }, access: bits & ALL })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::devices::rules;
    use crate::cgroup::fake::Fake;

    #[test]
    fn lines_are_what_the_kernel_writes() {
        for line in ["c 10:* rw", "b 8:0 rwm", "c *:* m"] {
            assert_eq!(text(&parse(line).unwrap()), line);
        }
        assert_eq!(parse("a *:* rwm"), None);
    }

    #[test]
    fn all_is_denied_before_anything_is_allowed() {
        let fake =
            Fake::with(&[("devices.list", "a *:* rwm\n"), ("devices.allow", ""), ("devices.deny", "")]);
        let rules = rules(&[]).unwrap();
        apply(&fake.directory(), &rules).unwrap();
        assert_eq!(fake.text("devices.deny"), "a");
        // Plain files keep all the writes that the open file got.
        assert_eq!(fake.text("devices.allow"), rules.iter().map(text).collect::<String>());
    }

    #[test]
    fn an_update_denies_only_what_is_no_longer_wanted() {
        let list = "c 1:3 rwm\nc 10:200 rw\n";
        let fake = Fake::with(&[("devices.list", list), ("devices.allow", ""), ("devices.deny", "")]);
        apply(&fake.directory(), &rules(&[]).unwrap()).unwrap();
        assert_eq!(fake.text("devices.deny"), "c 10:200 rw");
    }
}
