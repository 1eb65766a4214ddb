//! Heredocs: which documents an instruction asks for.
//!
//! `<<NAME`, `<<-NAME`, `3<<NAME`, quoted in whole or part; not inside quotes and not `<<<`.

use super::{
    Heredoc,
    expand::{Expander, NoValues, Quotes},
};

/// The documents that a line names, in order and still without content.
pub(super) fn named(line: &str) -> Vec<Heredoc> {
    if !line.contains("<<") {
        return Vec::new();
    }
    let raw = Expander {
        escape: '\\',
        quotes: Quotes::Keep,
        keep_escapes: true,
        keep_unset: true,
        values: &NoValues,
    };
    // A line that is no words in itself is a matter of the shell that it is for.
    let words = raw.expand(line).map(|expanded| expanded.words).unwrap_or_default();
    words.iter().filter_map(|word| heredoc(word)).collect()
}

/// Reads one word as the name of a document.
pub(super) fn heredoc(word: &str) -> Option<Heredoc> {
    let (number, rest) = word.split_once("<<")?;
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let strip_tabs = rest.starts_with('-');
    let rest = rest[usize::from(strip_tabs)..].trim_start();
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let how =
        |quotes| Expander { escape: '\\', quotes, keep_escapes: false, keep_unset: true, values: &NoValues };
    let bare = how(Quotes::Remove).expand(rest).ok()?;
    let [name] = bare.words.as_slice() else { return None };
    let kept = how(Quotes::Keep).expand(rest).ok()?.text;
    Some(Heredoc {
        name: name.clone(),
        descriptor: number.parse().unwrap_or(0),
        strip_tabs,
        expand: kept == *name,
        content: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_a_shell_reads_them() {
        for (word, name, expand, strip) in [
            ("<<EOF", "EOF", true, false),
            ("<<-EOF", "EOF", true, true),
            ("<<'EOF'", "EOF", false, false),
            ("<<\"EOF\"", "EOF", false, false),
            ("<<eo'f'", "eof", false, false),
            ("<<eo\\'f", "eo'f", true, false),
            ("<<'e'o\\'f", "eo'f", false, false),
            ("<<'one two'", "one two", false, false),
            ("<<$EOF", "$EOF", true, false),
            ("<<  EOF", "EOF", true, false),
            ("<<- EOF", "EOF", true, true),
            ("<<file.txt", "file.txt", true, false),
        ] {
            let found = heredoc(word).unwrap_or_else(|| panic!("{word}"));
            assert_eq!(
                (found.name.as_str(), found.expand, found.strip_tabs),
                (name, expand, strip),
                "{word}"
            );
        }
        assert_eq!(heredoc("3<<X").unwrap().descriptor, 3);
        for word in ["", "EOF", "<<", "<<-", "<EOF", "<<<EOF", "<<EOF sh", "<<'EOF", "cat<<EOF"] {
            assert!(heredoc(word).is_none(), "{word}");
        }
    }

    #[test]
    fn a_line_may_name_several_and_quotes_hide_them() {
        let names = |line| named(line).into_iter().map(|found| found.name).collect::<Vec<_>>();
        assert_eq!(names("COPY <<A <<B /to"), ["A", "B"]);
        assert_eq!(names("RUN << EOF  > foo"), ["EOF"]);
        assert_eq!(names("RUN cat <<- EOF"), ["EOF"]);
        assert_eq!(names("RUN \"<<EOF\""), Vec::<String>::new());
        assert_eq!(names("RUN echo it's <<EOF"), Vec::<String>::new());
        assert_eq!(names("RUN cat <<<word"), Vec::<String>::new());
    }
}
