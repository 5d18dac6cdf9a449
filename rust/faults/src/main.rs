//! `faultproxy TARGET [PLAN]`: a fault-injecting proxy to the address TARGET as a program.
//!
//! Its first line of output is the address it listens on. Each line of input is a plan (see
//! `headrace_faults::json`), answered by `taken` or by `refused: ` and why, or the word `records`, answered by
//! what is known of the connections so far. It ends when its input does.

use std::io::Write;
use std::process::ExitCode;

use headrace_faults::{Plan, Proxy, json};
use tokio::io::{AsyncBufReadExt, BufReader};

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.map_err(|error| error.to_string()).and_then(|runtime| runtime.block_on(serve()));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            // Without standard error there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "faultproxy: {reason}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> Result<(), String> {
    let mut arguments = std::env::args().skip(1);
    let target = arguments.next().ok_or("usage: faultproxy HOST:PORT [PLAN]")?;
    let target = target.parse().map_err(|error| format!("{target} is no address: {error}"))?;
    let plan = match arguments.next() {
        Some(text) => json::plan(&text).map_err(|error| error.to_string())?,
        None => Plan::default(),
    };
    let proxy = Proxy::start(target, plan).await.map_err(|error| error.to_string())?;
    say(&proxy.address().to_string())?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await.map_err(|error| error.to_string())? {
        say(&answer(&proxy, line.trim()))?;
    }
    Ok(())
}

fn answer(proxy: &Proxy, line: &str) -> String {
    if line == "records" {
        return json::records(&proxy.records());
    }
    match json::plan(line) {
        Ok(plan) => {
            proxy.set_plan(plan);
            "taken".to_owned()
        }
        Err(error) => format!("refused: {error}"),
    }
}

fn say(line: &str) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|error| error.to_string())
}
