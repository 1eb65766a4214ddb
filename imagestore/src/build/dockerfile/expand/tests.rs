//! What becomes of a word, by tables.

use std::collections::BTreeMap;

use super::*;

struct Table(BTreeMap<&'static str, &'static str>);

impl Values for Table {
    fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name).copied()
    }
}

fn table() -> Table {
    let pairs = [
        ("v", "value"),
        ("empty", ""),
        ("path", "/a/b/c.tar.gz"),
        ("blank", "one two"),
        ("dollar", "$v"),
        ("1", "first"),
    ];
    Table(pairs.into())
}

fn expander(values: &Table) -> Expander<'_> {
    Expander { escape: '\\', quotes: Quotes::Remove, keep_escapes: false, keep_unset: false, values }
}

fn text(word: &str) -> Result<String, Error> {
    expander(&table()).expand(word).map(|expanded| expanded.text)
}

#[test]
fn variables_and_their_modifiers() {
    for (word, result) in [
        ("$v", "value"),
        ("${v}x$v", "valuexvalue"),
        ("$vx", ""),
        ("$none", ""),
        ("a$", "a$"),
        ("$1", "first"),
        ("${v:-other}", "value"),
        ("${empty:-other}", "other"),
        ("${empty-other}", ""),
        ("${none-other}", "other"),
        ("${none:-$v}", "value"),
        ("${none:-${none:-deep}}", "deep"),
        ("${v:+set}", "set"),
        ("${empty:+set}", ""),
        ("${empty+set}", "set"),
        ("${none+set}", ""),
        ("${v:?must}", "value"),
        ("${path#/*/}", "b/c.tar.gz"),
        ("${path##/*/}", "c.tar.gz"),
        ("${path%.*}", "/a/b/c.tar"),
        ("${path%%.*}", "/a/b/c"),
        ("${path/b/X}", "/a/X/c.tar.gz"),
        ("${path//\\//-}", "-a-b-c.tar.gz"),
        ("${path/no/X}", "/a/b/c.tar.gz"),
        ("${v#?}", "alue"),
        ("${none#x}", ""),
        ("$dollar", "$v"),
    ] {
        assert_eq!(text(word).as_deref(), Ok(result), "{word}");
    }
}

#[test]
fn quotes_and_escapes() {
    for (word, result) in [
        ("'$v'", "$v"),
        ("\"$v\"", "value"),
        ("\"a 'b' c\"", "a 'b' c"),
        ("'a \"b\" c'", "a \"b\" c"),
        ("\\$v", "$v"),
        ("\"\\$v\"", "$v"),
        ("\"\\n\"", "\\n"),
        ("a\\ b", "a b"),
        ("\\\\", "\\"),
        ("a\"b\"'c'", "abc"),
        ("\\", ""),
    ] {
        assert_eq!(text(word).as_deref(), Ok(result), "{word}");
    }
}

#[test]
fn documents_keep_their_quotes_and_other_escapes_are_chosen() {
    let values = table();
    let document = Expander { quotes: Quotes::Ignore, ..expander(&values) };
    assert_eq!(document.expand("say \"$v\" 'n ${v}'").unwrap().text, "say \"value\" 'n value'");
    let windows = Expander { escape: '`', ..expander(&values) };
    assert_eq!(windows.expand("c:\\$v`$v").unwrap().text, "c:\\value$v");
    let kept = Expander { keep_unset: true, ..expander(&values) };
    assert_eq!(kept.expand("$none ${none} ${none:-x} $v").unwrap().text, "$none ${none} ${none:-x} value");
}

#[test]
fn words_part_at_blanks_that_nothing_holds_together() {
    let words = |word: &str| expander(&table()).expand(word).unwrap().words;
    assert_eq!(words("$blank"), ["one", "two"]);
    assert_eq!(words("\"$blank\""), ["one two"]);
    assert_eq!(words("a\\ b c"), ["a b", "c"]);
    assert_eq!(words("  "), [] as [&str; 0]);
}

#[test]
fn what_was_used_and_what_was_missing_is_known() {
    let expanded = expander(&table()).expand("$v ${none:-x} $empty").unwrap();
    assert_eq!(expanded.used.into_iter().collect::<Vec<_>>(), ["empty", "v"]);
    assert_eq!(expanded.missing.into_iter().collect::<Vec<_>>(), ["none"]);
}

#[test]
fn mistakes_are_told_apart() {
    for (word, error) in [
        ("'a", Error::Quote('\'')),
        ("\"a", Error::Quote('"')),
        ("${v", Error::Brace),
        ("${v:-x", Error::Brace),
        ("${}", Error::Name),
        ("${:x}", Error::Name),
        ("${v^^}", Error::Operator { name: "v".into(), operator: "^".into() }),
        ("${v:=x}", Error::Operator { name: "v".into(), operator: ":=".into() }),
        ("${v/x}", Error::Slash("v".into())),
        ("${v#\\x}", Error::Escape("x".into())),
        ("${none?give it}", Error::Required { name: "none".into(), message: "give it".into() }),
        (
            "${empty:?}",
            Error::Required { name: "empty".into(), message: "it must be set and not empty".into() },
        ),
    ] {
        assert_eq!(text(word), Err(error), "{word}");
    }
}

#[test]
fn little_text_makes_no_endless_work() {
    let deep = format!("{}x{}", "${n:-".repeat(100), "}".repeat(100));
    assert_eq!(text(&deep), Err(Error::Depth));
    let big = "a".repeat(MAX_EXPANDED / 2);
    let big: &'static str = Box::leak(big.into_boxed_str());
    let values = Table([("big", big)].into());
    assert_eq!(expander(&values).expand("$big$big$big"), Err(Error::Size));
    assert_eq!(expander(&values).expand("${big//a/$big}"), Err(Error::Size));
}
