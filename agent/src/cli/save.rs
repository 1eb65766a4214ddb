//! `sampan save`: images as one tar, to a file or to standard output.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use clap::Args;
use sampan_proto::sampan::SaveRequest;

use super::{agent::Agent, failure::Failure, output::Output};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The file to write; standard output without it
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Names, ids or beginnings of ids; what is saved by a name keeps it
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

pub(super) async fn execute(arguments: Arguments, agent: &Agent, out: &mut Output) -> Result<(), Failure> {
    if arguments.output.is_none() && out.screen().is_some() {
        return Err(Failure::message("a tar is not for a terminal; use '-o FILE' or send it to a file"));
    }
    let request = SaveRequest { images: arguments.images };
    let mut pieces = agent.images().save(request).await.map_err(Failure::of_image)?.into_inner();
    let mut file = arguments.output.map(Written::create).transpose()?;
    while let Some(piece) = pieces.message().await.map_err(Failure::plain)? {
        match &mut file {
            Some(file) => file.write(&piece.data)?,
            None => out.bytes(&piece.data)?,
        }
    }
    file.map_or(Ok(()), Written::finish)
}

/// A file that appears under its name when it is whole.
pub(super) struct Written {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
}

impl Written {
    pub(super) fn create(path: PathBuf) -> Result<Self, Failure> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
        let file = File::create(&temporary).map_err(|error| failed(&path, &error))?;
        Ok(Self { path, temporary, file })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.file.write_all(bytes).map_err(|error| failed(&self.path, &error))
    }

    pub(super) fn finish(self) -> Result<(), Failure> {
        fs::rename(&self.temporary, &self.path).map_err(|error| failed(&self.path, &error))
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        // After the renaming there is none.
        let _ = fs::remove_file(&self.temporary);
    }
}

fn failed(path: &Path, error: &std::io::Error) -> Failure {
    Failure::message(format!("cannot write {}: {error}", path.display()))
}
