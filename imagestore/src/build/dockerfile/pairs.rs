//! Words of ENV, LABEL and ARG: cut at blanks that no quote holds together, with quotes and escapes left in.

use super::Pair;

/// Cuts a text into words as written. An escape with nothing after it is left out.
pub(super) fn words(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            words.extend(word.take());
            continue;
        }
        let word = word.get_or_insert_default();
        if c == escape && quote != Some('\'') {
            if let Some(next) = chars.next() {
                word.extend([c, next]);
            }
            continue;
        }
        match quote {
            Some(open) if open == c => quote = None,
            None if matches!(c, '\'' | '"') => quote = Some(c),
            _ => {}
        }
        word.push(c);
    }
    words.extend(word.filter(|word| !word.is_empty()));
    words
}

/// Reads `A=b "C D"=e`, or the old form `A the rest`. The error is a message and what to write.
pub(super) fn pairs(text: &str, escape: char) -> Result<Vec<Pair>, (String, String)> {
    let words = words(text, escape);
    let first = words.first().map(String::as_str).unwrap_or_default();
    if !first.contains('=') {
        return match text.split_once(char::is_whitespace) {
            Some((name, value)) => {
                let value = value.trim_start().to_owned();
                Ok(vec![Pair { name: name.to_owned(), value, legacy: true }])
            }
            None => Err((format!("{first} has no value"), format!("write {first}=VALUE"))),
        };
    }
    let pair = |word: &String| match word.split_once('=') {
        Some(("", _)) => Err((format!("{word:?} has no name"), "write NAME=VALUE".to_owned())),
        Some((name, value)) => Ok(Pair { name: name.to_owned(), value: value.to_owned(), legacy: false }),
        None => Err((
            format!("{word:?} has no value"),
            format!("write {word}=VALUE, or put quotes around a value with blanks"),
        )),
    };
    words.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, String)> {
        pairs(text, '\\').unwrap().into_iter().map(|pair| (pair.name, pair.value)).collect()
    }

    #[test]
    fn words_keep_their_quotes_and_escapes() {
        assert_eq!(words(r#"a="b c" d='e "f' g\ h i\"#, '\\'), [r#"a="b c""#, r#"d='e "f'"#, r"g\ h", "i"]);
        assert_eq!(words("a=` b", '`'), ["a=` b"]);
        assert_eq!(words("  ", '\\'), Vec::<String>::new());
    }

    #[test]
    fn both_forms_are_read() {
        assert_eq!(read("a=b c=\"d e\""), [("a".into(), "b".into()), ("c".into(), "\"d e\"".into())]);
        assert_eq!(read("name the  rest = it"), [("name".into(), "the  rest = it".into())]);
        assert_eq!(read("a= b=")[0], ("a".into(), "".into()));
        for wrong in ["name", "a=b c", "=b"] {
            assert!(pairs(wrong, '\\').is_err(), "{wrong}");
        }
    }
}
