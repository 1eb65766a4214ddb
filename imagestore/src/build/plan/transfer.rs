//! COPY and ADD: sources, destination and how files change on the way.

use url::Url;

use crate::{
    Digest,
    build::{
        check::{self, Rule},
        diagnostic::Diagnostic,
        dockerfile::{Instruction, SourceText, Transfer, mode::ModeChange, mount::clean},
    },
};

use super::{Copy, Origin, Source, evaluate::Evaluator, history};

type Failure = Box<Diagnostic>;

impl Evaluator<'_> {
    /// The copy, and its entry in the history.
    pub(super) fn transfer(
        &mut self,
        instruction: &Instruction,
        transfer: &Transfer,
        add: bool,
    ) -> Result<(Copy, String), Failure> {
        let from = match &transfer.from {
            Some(name) => self.origin(instruction, name)?,
            None => Origin::Context,
        };
        let owner = self.flag(instruction, transfer.owner.as_deref())?;
        let mode_text = self.flag(instruction, transfer.mode.as_deref())?;
        let mode = mode_text.as_deref().map(ModeChange::parse).transpose();
        let mode = mode.map_err(|message| self.failure(instruction, "--chmod", message, None))?;
        let checksum = self.flag(instruction, transfer.checksum.as_deref())?;
        let mut words = Vec::new();
        if transfer.parents {
            words.push("--parents".to_owned());
        }
        words.extend(owner.as_ref().map(|owner| format!("--chown={owner}")));
        words.extend(mode_text.map(|mode| format!("--chmod={mode}")));
        let mut sources = Vec::with_capacity(transfer.sources.len());
        for source in &transfer.sources {
            let shown;
            let source = match source {
                SourceText::Path(written) => {
                    // The history has it as it was written, variables put in.
                    shown = without_password(&self.word(instruction, written)?);
                    self.path(instruction, transfer, written, add, &from)?
                }
                SourceText::Inline(document) => {
                    let text = document.text();
                    let content = if document.expand { self.document(instruction, &text)? } else { text };
                    shown = format!("<<{}", document.name);
                    Source::Inline { name: document.name.clone(), content }
                }
            };
            words.push(shown);
            sources.push(source);
        }
        self.checksum(instruction, checksum, &mut sources)?;
        let written = self.word(instruction, &transfer.destination)?;
        words.push(written.clone());
        let history = history::transfer(if add { "ADD" } else { "COPY" }, &words);
        let (exclude, parents, link) = (transfer.exclude.clone(), transfer.parents, transfer.link);
        let destination = self.destination(&written);
        Ok((Copy { add, from, sources, destination, owner, mode, exclude, parents, link }, history))
    }

    fn flag(&mut self, instruction: &Instruction, text: Option<&str>) -> Result<Option<String>, Failure> {
        let value = text.map(|text| self.word(instruction, text)).transpose()?;
        Ok(value.filter(|value| !value.is_empty()))
    }

    /// A directory is told by a slash at the end, or by being the working directory.
    fn destination(&self, written: &str) -> String {
        let path = clean(&self.directory(), written);
        let last = written.rsplit('/').next().unwrap_or_default();
        if path != "/" && matches!(last, "" | "." | "..") { format!("{path}/") } else { path }
    }

    fn path(
        &mut self,
        instruction: &Instruction,
        transfer: &Transfer,
        written: &str,
        add: bool,
        from: &Origin,
    ) -> Result<Source, Failure> {
        let path = self.word(instruction, written)?;
        if is_git(&path) {
            let help = "fetch it in a RUN, or give the build an archive of it".to_owned();
            return Err(self.failure(instruction, written, "git repositories are no source yet", help));
        }
        if path.starts_with("http://") || path.starts_with("https://") {
            if !add {
                return Err(self.failure(instruction, written, "COPY takes no URL", "write ADD".to_owned()));
            }
            let parsed = Url::parse(&path)
                .map_err(|error| self.failure(instruction, written, format!("{path:?}: {error}"), None))?;
            let last = parsed.path().rsplit('/').next().unwrap_or_default();
            let last = decoded(last);
            let nameless = matches!(&*last, "" | "." | "..") || last.contains(['/', '\0']);
            let name = if nameless { "__unnamed__".to_owned() } else { last };
            let unpack = transfer.unpack.unwrap_or(false);
            return Ok(Source::Url { url: path, name, unpack, checksum: None });
        }
        if transfer.keep_git_dir.is_some() {
            let help = "leave it out".to_owned();
            return Err(self.failure(
                instruction,
                "--keep-git-dir",
                "--keep-git-dir is for git repositories",
                help,
            ));
        }
        if *from == Origin::Context
            && let Some(ignore) = &self.plan.options.ignore
            && check::is_ignored(ignore, &path)
        {
            let message = format!("{path} is kept out of the context by .dockerignore");
            let help =
                format!("write !{} in .dockerignore, or copy something else", path.trim_start_matches('/'));
            self.find(Rule::CopyIgnoredFile, instruction, written, message, help);
        }
        let unpack = add && transfer.unpack.unwrap_or(true);
        let (pivot, path) = match path.split_once("/./").filter(|_| transfer.parents) {
            Some((pivot, rest)) => (Some(clean("/", pivot)), clean("/", rest)),
            None => (None, clean("/", &path)),
        };
        Ok(Source::Path { pivot, path, unpack })
    }

    /// A checksum is of one file that is fetched.
    fn checksum(
        &self,
        instruction: &Instruction,
        checksum: Option<String>,
        sources: &mut [Source],
    ) -> Result<(), Failure> {
        let Some(text) = checksum else { return Ok(()) };
        let digest: Digest = text.parse().map_err(|error| {
            let help = "write --checksum=sha256:HEX".to_owned();
            self.failure(instruction, "--checksum", format!("{text:?} is no checksum: {error}"), help)
        })?;
        match sources {
            [Source::Url { checksum, .. }] => *checksum = Some(digest.to_string()),
            _ => {
                let help = "write one URL for each ADD with a checksum".to_owned();
                return Err(self.failure(instruction, "--checksum", "--checksum is for one URL", help));
            }
        }
        Ok(())
    }
}

/// A part of an address with its `%20`s decoded.
fn decoded(part: &str) -> String {
    let (mut bytes, mut rest) = (Vec::with_capacity(part.len()), part.as_bytes());
    while let [first, left @ ..] = rest {
        let code = left.get(..2).filter(|_| *first == b'%').and_then(|digits| hex::decode(digits).ok());
        match code {
            Some(code) => {
                bytes.extend(code);
                rest = &left[2..];
            }
            None => {
                bytes.push(*first);
                rest = left;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An address as it may be shown; anything else as it is.
pub(super) fn without_password(path: &str) -> String {
    match Url::parse(path) {
        Ok(mut url) if matches!(url.scheme(), "http" | "https") && url.password().is_some() => {
            let _ = url.set_password(Some("xxxxx"));
            url.to_string()
        }
        _ => path.to_owned(),
    }
}

/// What Docker takes for a git repository.
fn is_git(path: &str) -> bool {
    let bare = path.split(['#', '?']).next().unwrap_or_default();
    let scheme = ["git://", "git@", "ssh://"].iter().any(|scheme| path.starts_with(scheme));
    scheme || ((bare.starts_with("http://") || bare.starts_with("https://")) && bare.ends_with(".git"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_addresses_are_decoded_and_passwords_are_not_shown() {
        for (written, name) in [("a%20b", "a b"), ("%41%", "A%"), ("%zz", "%zz"), ("%C3%A9", "é"), ("", "")]
        {
            assert_eq!(decoded(written), name, "{written}");
        }
        assert_eq!(without_password("https://me:pw@x.test/a b"), "https://me:xxxxx@x.test/a%20b");
        for plain in ["https://me@x.test/a", "a:b@c", "src/file"] {
            assert_eq!(without_password(plain), plain);
        }
    }
}
