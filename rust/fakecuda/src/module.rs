//! Modules and kernels. Nothing is compiled: a module is PTX text, its kernels are the entries named there, and
//! what one does follows from its name:
//!
//! | Entry | Parameters | Does |
//! |---|---|---|
//! | `headrace_spin` | u64 nanoseconds | takes that long |
//! | `headrace_gate` | u64 address of a 32-bit word in pinned memory | runs until the word is not zero |
//! | `headrace_trap` | | fails as a kernel does that hits an assertion; the error is sticky |
//! | others | | nothing |

use std::time::Duration;

use crate::code::Code;
use crate::stream::Operation;

/// Text of a module, kept for its entries.
#[derive(Debug)]
pub(crate) struct Module {
    entries: Vec<String>,
}

/// A kernel that can be launched.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kernel {
    Spin,
    Gate,
    Trap,
    Nothing,
}

impl Module {
    /// Reads the entries of PTX text.
    pub(crate) fn load(text: &str) -> Result<Self, Code> {
        if !text.contains(".version") {
            return Err(Code::INVALID_PTX);
        }
        let name =
            |rest: &str| rest.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().map(str::to_owned);
        let entries = text.split(".entry").skip(1).filter_map(|rest| name(rest.trim_start())).collect();
        Ok(Self { entries })
    }

    pub(crate) fn kernel(&self, name: &str) -> Result<Kernel, Code> {
        if !self.entries.iter().any(|entry| entry == name) {
            return Err(Code::NOT_FOUND);
        }
        Ok(match name {
            "headrace_spin" => Kernel::Spin,
            "headrace_gate" => Kernel::Gate,
            "headrace_trap" => Kernel::Trap,
            _ => Kernel::Nothing,
        })
    }
}

impl Kernel {
    /// Whether a launch reads a first parameter.
    pub(crate) fn takes_parameter(self) -> bool {
        matches!(self, Self::Spin | Self::Gate)
    }

    pub(crate) fn operation(self, parameter: u64) -> Operation {
        match self {
            Self::Spin => Operation::Spin(Duration::from_nanos(parameter)),
            Self::Gate => Operation::Gate(usize::try_from(parameter).unwrap_or(usize::MAX)),
            Self::Trap => Operation::Trap,
            Self::Nothing => Operation::Spin(Duration::ZERO),
        }
    }
}
