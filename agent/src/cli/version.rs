//! `sampan version`: this command's version and the agent's.

use clap::Args;
use sampan_proto::{cri::VersionRequest, sampan::InfoRequest};
use serde::Serialize;

use super::{agent::Agent, failure::Failure, options::Listing, output::Output};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, Serialize)]
struct Versions {
    client: Client,
    /// Unset when the agent could not be asked.
    agent: Option<Server>,
}

#[derive(Debug, Serialize)]
struct Client {
    version: &'static str,
}

#[derive(Debug, Serialize)]
struct Server {
    version: String,
    runtime_name: String,
    runtime_version: String,
    cri_version: String,
    kernel_version: String,
    architecture: String,
}

/// The client's own part is printed even when nobody answers.
pub(super) async fn execute(
    arguments: Arguments,
    agent: impl Future<Output = Result<Agent, Failure>>,
    out: &mut Output,
) -> Result<(), Failure> {
    let (server, failure) = match ask(agent).await {
        Ok(server) => (Some(server), None),
        Err(failure) => (None, Some(failure)),
    };
    let versions = Versions { client: Client { version: env!("CARGO_PKG_VERSION") }, agent: server };
    if arguments.listing.is_json() {
        out.json(&versions)?;
    } else {
        print(&versions, out)?;
    }
    failure.map_or(Ok(()), Err)
}

async fn ask(agent: impl Future<Output = Result<Agent, Failure>>) -> Result<Server, Failure> {
    let agent = agent.await?;
    let request = VersionRequest { version: "v1".to_owned() };
    let version = agent.cri().version(request).await.map_err(Failure::plain)?.into_inner();
    let info = agent.system().info(InfoRequest {}).await.map_err(Failure::plain)?.into_inner();
    Ok(Server {
        version: info.version,
        runtime_name: version.runtime_name,
        runtime_version: version.runtime_version,
        cri_version: version.runtime_api_version,
        kernel_version: info.kernel_version,
        architecture: info.architecture,
    })
}

fn print(versions: &Versions, out: &mut Output) -> Result<(), Failure> {
    out.line("Client:")?;
    out.line(format_args!(" Version:        {}", versions.client.version))?;
    if let Some(agent) = &versions.agent {
        out.line("\nAgent:")?;
        out.line(format_args!(" Version:        {}", agent.version))?;
        out.line(format_args!(" Runtime:        {} {}", agent.runtime_name, agent.runtime_version))?;
        out.line(format_args!(" CRI version:    {}", agent.cri_version))?;
        out.line(format_args!(" Kernel version: {}", agent.kernel_version))?;
        out.line(format_args!(" Architecture:   {}", agent.architecture))?;
    }
    Ok(())
}
