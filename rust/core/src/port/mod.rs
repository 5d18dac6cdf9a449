//! The port where a process tells how it is, over HTTP: `/metrics` for Prometheus, `/live` and `/ready` for
//! whoever starts and stops processes. One for all workers and routers of the process that name its address.
//!
//! | file | what lives there |
//! |---|---|
//! | [`http`] | accepting, requests, responses, and every bound on them |
//! | [`answers`] | what a process answers of itself |
//! | [`merged`], [`ask`] | what a parent answers of its worker processes; asking one of them |
//! | this one | ports by address, and who shares one |
//!
//! It runs on tokio alone, so that it answers while every event loop is blocked.

mod answers;
mod ask;
mod http;
mod merged;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;

use self::answers::Answers;
use self::http::Listening;
use self::merged::Merged;
use crate::address::Address;
use crate::error::StartError;
use crate::health::Reports;
use crate::metrics::ask_loops;

/// Ports of this process by the address that was asked for.
static PORTS: Mutex<BTreeMap<String, Weak<Port>>> = Mutex::new(BTreeMap::new());

/// An open port. It closes when nobody holds it any more.
pub struct Port {
    listening: Listening,
    /// What the process answers of itself; a parent of worker processes has nothing to say of its own.
    answers: Option<Arc<Answers>>,
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port").field("address", self.address()).finish_non_exhaustive()
    }
}

impl Port {
    /// The port at `address`: opened now, or the one that this process has there already. With port 0 it is
    /// always another one. Event loops are asked for turns from now on.
    ///
    /// # Errors
    /// The address leads off loopback and `insecure` is false, or the system refuses to listen there.
    pub fn open(address: &Address, insecure: bool, runtime: &Handle) -> Result<Arc<Self>, StartError> {
        let mut ports = PORTS.lock();
        ports.retain(|_, port| port.strong_count() > 0);
        let name = address.to_string();
        if let Some(port) = ports.get(&name).and_then(Weak::upgrade) {
            return Ok(port);
        }
        let answers = Arc::new(Answers::default());
        let listening = Listening::open(address, insecure, Arc::clone(&answers), runtime)?;
        ask_loops(runtime);
        let port = Arc::new(Self { listening, answers: Some(answers) });
        if !matches!(address, Address::Tcp { port: 0, .. }) {
            ports.insert(name, Arc::downgrade(&port));
        }
        Ok(port)
    }

    /// A port for the parent of worker processes, each of which has a port of its own at a Unix socket: one
    /// scrape of this one is a scrape of all of them, told apart by the label `worker_process`, their place.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_merged(
        address: &Address,
        insecure: bool,
        worker_processes: Vec<PathBuf>,
        runtime: &Handle,
    ) -> Result<Arc<Self>, StartError> {
        let merged = Arc::new(Merged::new(worker_processes));
        let listening = Listening::open(address, insecure, merged, runtime)?;
        Ok(Arc::new(Self { listening, answers: None }))
    }

    /// Where it listens; the real port when 0 was asked for.
    #[must_use]
    pub const fn address(&self) -> &Address {
        self.listening.address()
    }

    /// Has `/ready` depend on a worker or router. An event loop that has no turn for `frozen_after` counts as
    /// frozen; of several such times the shortest holds.
    pub fn watch(&self, member: Arc<dyn Reports>, frozen_after: Duration) {
        if let Some(answers) = &self.answers {
            answers.watch(member, frozen_after);
        }
    }
}
