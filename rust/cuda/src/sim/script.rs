//! What fails on a simulated device, and when.

use crate::error::Fault;

/// A kind of call into a simulated device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SimCall {
    /// A stream is created.
    CreateStream,
    /// A stream is asked whether it is done.
    QueryStream,
    /// An event is created.
    CreateEvent,
    /// An event is recorded.
    RecordEvent,
    /// An event is asked whether it was reached.
    QueryEvent,
    /// An event is waited for.
    SynchronizeEvent,
    /// The whole device is waited for.
    SynchronizeAll,
    /// A stream waits for an event.
    WaitEvent,
    /// Pinned memory is allocated.
    AllocateHost,
    /// Device memory is allocated.
    Allocate,
    /// Bytes are copied to the device.
    CopyToDevice,
    /// Bytes are copied to the host.
    CopyToHost,
    /// A kernel is launched.
    Launch,
    /// A host function is queued.
    CallHost,
}

/// When a fault shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// The call returns it.
    Called,
    /// The call returns nothing; its work meets the fault when it ends, and the device is lost.
    Executed,
}

/// One call that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimFault {
    /// The kind of call.
    pub call: SimCall,
    /// Which of these calls, the next one being 1.
    pub nth: u32,
    /// The driver's number of the error.
    pub code: u32,
    /// When it shows.
    pub when: When,
}

/// The faults that have not been met yet.
#[derive(Debug, Default)]
pub(super) struct Script {
    faults: Vec<SimFault>,
}

impl Script {
    pub(super) fn add(&mut self, fault: SimFault) {
        self.faults.push(SimFault { nth: fault.nth.max(1), ..fault });
    }

    /// Counts one call. What it meets, if anything.
    pub(super) fn meet(&mut self, call: SimCall) -> Option<SimFault> {
        let mut met = None;
        self.faults.retain_mut(|fault| {
            if fault.call != call {
                return true;
            }
            fault.nth -= 1;
            if fault.nth == 0 && met.is_none() {
                met = Some(*fault);
            }
            fault.nth > 0
        });
        met
    }
}

/// An error as the driver would word it.
pub(super) fn fault(code: u32, operation: &'static str) -> Fault {
    let name = match code {
        1 => "CUDA_ERROR_INVALID_VALUE",
        2 => "CUDA_ERROR_OUT_OF_MEMORY",
        400 => "CUDA_ERROR_INVALID_HANDLE",
        600 => "CUDA_ERROR_NOT_READY",
        700 => "CUDA_ERROR_ILLEGAL_ADDRESS",
        702 => "CUDA_ERROR_LAUNCH_TIMEOUT",
        719 => "CUDA_ERROR_LAUNCH_FAILED",
        800 => "CUDA_ERROR_NOT_PERMITTED",
        999 => "CUDA_ERROR_UNKNOWN",
        _ => "CUDA_ERROR",
    };
    Fault { code, name: name.to_owned(), text: "simulated".to_owned(), operation }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_call_of_a_kind_fails_and_no_other() {
        let mut script = Script::default();
        script.add(SimFault { call: SimCall::Launch, nth: 2, code: 1, when: When::Called });
        let met: Vec<bool> = (0..4).map(|_| script.meet(SimCall::Launch).is_some()).collect();
        assert_eq!(met, [false, true, false, false]);
        assert_eq!(script.meet(SimCall::Allocate), None);
    }
}
