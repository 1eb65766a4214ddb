//! `sampan load`: the images of a tar, from a file or from standard input.

use std::{
    io::{self, IsTerminal},
    os::fd::AsFd,
    path::PathBuf,
};

use clap::Args;
use futures_util::stream;
use sampan_proto::sampan::LoadRequest;
use tokio::{fs::File, io::AsyncReadExt, sync::oneshot};

use super::{agent::Agent, failure::Failure, human::familiar, output::Output};

/// Bytes in a message.
const PIECE: usize = 256 << 10;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The file to read, compressed or not; standard input without it
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,

    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
}

pub(super) async fn execute(arguments: Arguments, agent: &Agent, out: &mut Output) -> Result<(), Failure> {
    let opened = match &arguments.input {
        Some(path) => std::fs::File::open(path).map_err(|error| (path.display().to_string(), error)),
        None if io::stdin().is_terminal() => {
            return Err(Failure::message("a tar does not come from a terminal; use '-i FILE' or a pipe"));
        }
        None => {
            io::stdin().as_fd().try_clone_to_owned().map(Into::into).map_err(|error| ("-".to_owned(), error))
        }
    };
    let input = opened.map_err(|(name, error)| Failure::message(format!("cannot open {name}: {error}")))?;
    let input = File::from_std(input);
    let (broken, reason) = oneshot::channel::<io::Error>();
    let pieces = stream::unfold((input, Some(broken)), |(mut input, mut broken)| async move {
        let mut data = vec![0; PIECE];
        let mut length = 0;
        while length < PIECE {
            match input.read(&mut data[length..]).await {
                Ok(0) => break,
                Ok(read) => length += read,
                Err(error) => {
                    // A tar that only ends early would be a damaged one; the reader's own error says more.
                    let _ = broken.take().map(|broken| broken.send(error));
                    return None;
                }
            }
        }
        data.truncate(length);
        (length > 0).then_some((LoadRequest { data }, (input, broken)))
    });
    let answer = agent.images().load(pieces).await;
    let answer = match answer {
        Err(status) => match reason.await {
            Ok(error) => return Err(Failure::message(format!("cannot read the archive: {error}"))),
            Err(_) => return Err(Failure::plain(status)),
        },
        Ok(answer) => answer.into_inner(),
    };
    for image in answer.images {
        match image.names.as_slice() {
            _ if arguments.quiet => out.line(&image.id)?,
            [] => out.line(format_args!("Loaded image ID: {}", image.id))?,
            names => {
                names
                    .iter()
                    .try_for_each(|name| out.line(format_args!("Loaded image: {}", familiar(name))))?;
            }
        }
    }
    Ok(())
}
