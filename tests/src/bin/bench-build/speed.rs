//! How long builds take.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use sampan_tests::fixture;
use tempfile::TempDir;

use super::builders::{Builder, Cost};

/// What the commands of the cold build take by themselves.
const COMMANDS: Duration = Duration::from_secs(4);

/// Takes all times, and prints them.
pub(crate) fn measure(builders: &[Builder], rounds: usize) -> Result<()> {
    let names: Vec<&str> = builders.iter().map(Builder::name).collect();
    println!("| work | {} |\n|---|{}", names.join(" | "), "---|".repeat(names.len()));
    for steps in [6, 20] {
        let context = context(&steps_of(steps))?;
        let costs = rebuilt(builders, context.path(), rounds)?;
        row(&format!("cached rebuild of {steps} steps, p50"), &costs, |cost| cost.wall);
    }
    let context = context("FROM BASE\nCOPY . /in/\nRUN true\n")?;
    for number in 0..27_000 {
        let folder = context.path().join(format!("d{}", number % 270));
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(format!("f{number}")), format!("file {number}\n"))?;
    }
    let costs = rebuilt(builders, context.path(), rounds.min(5))?;
    row("unchanged context of 27,000 files, p50", &costs, |cost| cost.wall);
    row("the same, processor time of the client", &costs, |cost| cost.client);
    let cold =
        format!("FROM BASE\n{}", "RUN sleep 1; echo done >> /done\n".repeat(COMMANDS.as_secs() as usize));
    let costs = cold_builds(builders, &cold, rounds.min(5))?;
    row(&format!("cold build whose commands take {} s", COMMANDS.as_secs()), &costs, |cost| cost.wall);
    let two = "FROM BASE AS a\nRUN sleep 2; echo a > /a\nFROM BASE AS b\nRUN sleep 2; echo b > /b\n\
               FROM BASE\nCOPY --from=a /a /\nCOPY --from=b /b /\n";
    let costs = cold_builds(builders, two, rounds.min(3))?;
    row("two independent stages of 2 s each", &costs, |cost| cost.wall);
    Ok(())
}

fn steps_of(count: usize) -> String {
    let mut text = "FROM BASE\n".to_owned();
    for number in 0..count {
        text.push_str(&match number % 3 {
            0 => format!("COPY Dockerfile /copied{number}\n"),
            _ => format!("RUN echo {number} > /step{number}\n"),
        });
    }
    text
}

fn context(dockerfile: &str) -> Result<TempDir> {
    let context = tempfile::tempdir()?;
    fs::write(context.path().join("Dockerfile"), dockerfile.replace("BASE", &fixture().image("busybox")))?;
    Ok(context)
}

/// Costs of builds of what is all there, the cheapest first, for each builder.
fn rebuilt(builders: &[Builder], context: &Path, rounds: usize) -> Result<Vec<Vec<Cost>>> {
    for builder in builders {
        builder.build(context, "measured", false)?;
    }
    // Files that were written a moment ago are looked at again.
    std::thread::sleep(Duration::from_millis(300));
    for builder in builders {
        builder.build(context, "measured", false)?;
    }
    in_turns(builders, rounds, |builder| builder.build(context, "measured", false))
}

fn cold_builds(builders: &[Builder], dockerfile: &str, rounds: usize) -> Result<Vec<Vec<Cost>>> {
    let context = context(dockerfile)?;
    in_turns(builders, rounds, |builder| builder.build(context.path(), "cold", true))
}

fn in_turns(
    builders: &[Builder],
    rounds: usize,
    build: impl Fn(&Builder) -> Result<Cost>,
) -> Result<Vec<Vec<Cost>>> {
    let mut costs = vec![Vec::new(); builders.len()];
    for _ in 0..rounds.max(1) {
        for (builder, costs) in builders.iter().zip(&mut costs) {
            costs.push(build(builder)?);
        }
    }
    Ok(costs)
}

fn row(work: &str, costs: &[Vec<Cost>], of: impl Fn(&Cost) -> Duration) {
    let median = |costs: &Vec<Cost>| {
        let mut times: Vec<Duration> = costs.iter().map(&of).collect();
        times.sort();
        times[times.len() / 2].as_secs_f64() * 1e3
    };
    let medians: Vec<f64> = costs.iter().map(median).collect();
    let own = medians[0].max(0.1);
    let cells = medians.iter().enumerate().map(|(number, median)| match number {
        0 => format!("{median:.1} ms"),
        _ => format!("{median:.1} ms ({:.1} times)", median / own),
    });
    println!("| {work} | {} |", cells.collect::<Vec<_>>().join(" | "));
}
