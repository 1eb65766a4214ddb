//! JSON for people: indented, with the members in the order they were given.
//!
//! Works on text, because a `serde_json::Value` would sort what the agent put in a telling order.

use serde::Serialize;

const STEP: &str = "    ";

/// A value on one line.
pub(super) fn compact(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("structures of strings and numbers always become JSON")
}

/// Indents valid JSON; what is inside strings is left as it is.
pub(super) fn indent(json: &str) -> String {
    let mut text = String::with_capacity(json.len() * 2);
    let (mut depth, mut opened, mut quoted, mut escaped) = (0_usize, false, false, false);
    for character in json.chars() {
        if quoted {
            text.push(character);
            quoted = escaped || character != '"';
            escaped = !escaped && character == '\\';
            continue;
        }
        if character.is_ascii_whitespace() {
            continue;
        }
        let closes = matches!(character, '}' | ']');
        if closes {
            depth = depth.saturating_sub(1);
        }
        // An empty object or array stays together.
        if opened != closes {
            new_line(&mut text, depth);
        }
        text.push(character);
        opened = matches!(character, '{' | '[');
        match character {
            '{' | '[' => depth += 1,
            ',' => new_line(&mut text, depth),
            ':' => text.push(' '),
            '"' => quoted = true,
            _ => {}
        }
    }
    text
}

fn new_line(text: &mut String, depth: usize) {
    text.push('\n');
    text.extend(std::iter::repeat_n(STEP, depth));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_keep_their_order() {
        assert_eq!(
            indent(r#"{"Id":"b","Args":[1,{"x":null}],"A":true}"#),
            "{\n    \"Id\": \"b\",\n    \"Args\": [\n        1,\n        {\n            \"x\": null\n        }\n    ],\n    \
             \"A\": true\n}"
        );
    }

    #[test]
    fn empty_ones_stay_on_one_line() {
        assert_eq!(indent("[]"), "[]");
        assert_eq!(indent(r#"[{},[ ],""]"#), "[\n    {},\n    [],\n    \"\"\n]");
    }

    #[test]
    fn strings_are_not_touched() {
        let json = r#"["a{b,c:d}","quote \" and \\","\\"]"#;
        assert_eq!(
            indent(json),
            format!("[\n    {}\n]", json[1..json.len() - 1].replace("\",\"", "\",\n    \""))
        );
    }

    #[test]
    fn indenting_twice_changes_nothing() {
        let once = indent(r#"{"a":[1,2,{"b":[]}]}"#);
        assert_eq!(indent(&once), once);
    }
}
