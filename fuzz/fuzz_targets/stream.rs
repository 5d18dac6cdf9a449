//! Frames for one stream in any order: the receiving half refuses or keeps its promises.

#![no_main]

use headrace_wire::kind::{FRAGMENT, LAST};
use headrace_wire::stream::{Arrived, Inbound};
use libfuzzer_sys::fuzz_target;

const WINDOW: u32 = 4096;
const MESSAGE_MAX: usize = 64 * 1024;

fuzz_target!(|data: &[u8]| {
    let mut inbound = Inbound::response(WINDOW, MESSAGE_MAX);
    let mut buffered = 0;
    let mut rest = data;
    while let Some(([step, low, high], later)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(later.len());
        let (body, later) = later.split_at(length);
        rest = later;
        let refused = match step % 8 {
            0 => inbound.accept().is_err(),
            1 => inbound.reject().is_err(),
            2 => inbound.prologue(body).is_err(),
            3 => inbound.end(body).is_err(),
            4 => inbound.error(body).is_err(),
            5 => {
                let taken = buffered / 2 + 1;
                inbound.take(taken.min(buffered));
                buffered -= taken.min(buffered);
                false
            }
            step => {
                let last = if body.first().is_some_and(|byte| byte % 2 == 0) { LAST } else { 0 };
                let flags = if step == 6 { 0 } else { FRAGMENT | last };
                match inbound.data(flags, body) {
                    Ok(Arrived::Items { .. }) => buffered += body.len() as u64,
                    Ok(Arrived::Whole { payload, credit, .. }) => {
                        assert!(payload.len() <= MESSAGE_MAX);
                        buffered += credit;
                    }
                    Ok(Arrived::Fragment) => drop(inbound.grant()),
                    Err(_) => return,
                }
                false
            }
        };
        if refused {
            return;
        }
        let window = inbound.window();
        assert_eq!(window.buffered(), buffered);
        assert!(window.unused() <= u64::from(WINDOW) + window.expected());
        assert!(window.unused() + buffered <= u64::from(WINDOW) + MESSAGE_MAX as u64 + 5);
    }
});
