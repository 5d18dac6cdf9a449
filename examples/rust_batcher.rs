//! A batcher in Rust: many callers submit one number each, one function gets them thirty-two at a time.
//! `rust_batcher [CALLERS]` shows what that saves when a call costs two milliseconds, and ten microseconds more
//! for each item, as an accelerator's might.

use std::convert::Infallible;
use std::error::Error;
use std::io::{Write, stdout};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use headrace::batch::{BatchConfig, BatchError, Batcher, Terms};

const CALLS: u64 = 20;

/// What the accelerator would do.
fn squares(items: &[u64]) -> Vec<Result<u64, Infallible>> {
    sleep(Duration::from_millis(2) + Duration::from_micros(10) * items.len() as u32);
    items.iter().map(|item| Ok(item * item)).collect()
}

/// Lets `callers` tasks submit one item after the other; items a second.
async fn rate(callers: u64, max_batch_size: usize) -> Result<(f64, f64), Box<dyn Error>> {
    let config = BatchConfig {
        max_batch_size,
        queue_capacity: Some(callers.max(64) as usize),
        name: "squares".to_owned(),
        ..BatchConfig::default()
    };
    let batcher = Arc::new(Batcher::new(config, squares)?);
    let begun = Instant::now();
    let mut tasks = Vec::new();
    for caller in 0..callers {
        let batcher = Arc::clone(&batcher);
        tasks.push(tokio::spawn(async move {
            for call in 0..CALLS {
                let item = caller + call;
                assert_eq!(batcher.submit(item).await?, item * item);
            }
            Ok::<(), BatchError<Infallible>>(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    let rate = (callers * CALLS) as f64 / begun.elapsed().as_secs_f64();
    let size = batcher.stats().batch_size.mean().unwrap_or_default();
    // Or all at once, in order, when they are there already.
    let answers = batcher.map(0..callers, Terms::default()).await;
    assert!(answers.into_iter().zip(0..).all(|(answer, item)| answer.is_ok_and(|it| it == item * item)));
    batcher.drain(None).await;
    Ok((rate, size))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let callers = std::env::args().nth(1).map_or(Ok(64), |callers| callers.parse())?;
    let (alone, _) = rate(callers, 1).await?;
    writeln!(stdout(), "one at a time: {alone:.0} items/s")?;
    let (together, size) = rate(callers, 32).await?;
    writeln!(
        stdout(),
        "batched: {together:.0} items/s, {size:.1} to a batch: {:.1} times",
        together / alone
    )?;
    Ok(())
}
