//! `sampan port-forward`: local ports that lead to ports of a container's pod, until it is interrupted.

use std::net::{IpAddr, Ipv4Addr};

use clap::Args;
use futures_util::future::join_all;
use sampan_proto::sampan::{PortForwardRequest, PortForwardStart, port_forward_request::Message};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;

use super::{agent::Agent, failure::Failure, output::Output};

/// Bytes sent at a time.
const CHUNK: usize = 32 << 10;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Listen on this address
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,

    /// A name, an id or the beginning of one
    container: String,

    /// LOCAL:REMOTE, or one number for both; a local 0 is any free port
    #[arg(value_name = "PORT", required = true, value_parser = ports)]
    ports: Vec<(u16, u16)>,
}

fn ports(text: &str) -> Result<(u16, u16), String> {
    let number = |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is not 0 to 65535"));
    let (local, remote) = text.split_once(':').unwrap_or((text, text));
    let remote = number(remote)?;
    if remote == 0 {
        return Err("the remote port is not 1 to 65535".into());
    }
    Ok((if local.is_empty() { 0 } else { number(local)? }, remote))
}

pub(super) async fn execute(arguments: Arguments, agent: &Agent, out: &mut Output) -> Result<(), Failure> {
    // A container that is not there is found out now, and not by the first connection.
    let container = agent.container_id(&arguments.container).await?;
    let mut listeners = Vec::new();
    for (local, remote) in arguments.ports {
        let bound = TcpListener::bind((arguments.address, local)).await;
        let listener = bound.and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (address, listener) = listener
            .map_err(|error| Failure::message(format!("listen on {}:{local}: {error}", arguments.address)))?;
        out.line(format_args!("Forwarding from {address} -> {remote}"))?;
        listeners.push((listener, remote));
    }
    out.flush()?;
    join_all(listeners.into_iter().map(|(listener, remote)| serve(listener, remote, &container, agent)))
        .await;
    Ok(())
}

async fn serve(listener: TcpListener, remote: u16, container: &str, agent: &Agent) {
    while let Ok((connection, _)) = listener.accept().await {
        let (agent, container) = (agent.clone(), container.to_owned());
        tokio::spawn(async move {
            if let Err(status) = carry(connection, remote, container, &agent).await {
                let mut out = Output::standard();
                out.complain(&Failure::answered(&status, &[]));
            }
        });
    }
}

async fn carry(
    connection: TcpStream,
    remote: u16,
    container: String,
    agent: &Agent,
) -> Result<(), tonic::Status> {
    let (mut reader, mut writer) = connection.into_split();
    let (sender, messages) = mpsc::channel(4);
    let message = |message| PortForwardRequest { message: Some(message) };
    let start = PortForwardStart { container, port: remote.into() };
    let _ = sender.send(message(Message::Start(start))).await;
    let mut answers = agent.containers().port_forward(ReceiverStream::new(messages)).await?.into_inner();
    let forth = async move {
        let mut buffer = vec![0; CHUNK];
        while let Ok(length @ 1..) = reader.read(&mut buffer).await {
            if sender.send(message(Message::Data(buffer[..length].to_vec()))).await.is_err() {
                return;
            }
        }
    };
    let back = async move {
        while let Some(answer) = answers.message().await? {
            if writer.write_all(&answer.data).await.is_err() {
                break;
            }
        }
        let _ = writer.shutdown().await;
        Ok(())
    };
    tokio::join!(forth, back).1
}

#[cfg(test)]
mod tests {
    use super::ports;

    #[test]
    fn ports_are_one_number_or_two() {
        assert_eq!(ports("80"), Ok((80, 80)));
        assert_eq!(ports("8080:80"), Ok((8080, 80)));
        assert_eq!((ports(":80"), ports("0:80")), (Ok((0, 80)), Ok((0, 80))));
        for bad in ["", "0", "80:", "80:0", "x", "1:2:3", "70000"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }
}
