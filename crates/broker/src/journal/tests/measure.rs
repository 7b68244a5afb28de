//! What the journal costs, printed for whoever asks: `cargo test --release -p broker --lib journal -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use super::super::disk::Begun;
use super::*;

fn report(what: &str, mut costs: Vec<Duration>) {
    costs.sort();
    let at = |percent: usize| costs[(costs.len() - 1) * percent / 100];
    println!("{what}: median {:?}, 99 % {:?}, most {:?} of {}", at(50), at(99), at(100), costs.len());
}

fn timed(count: u64, mut act: impl FnMut(u64)) -> Vec<Duration> {
    (1..=count)
        .map(|number| {
            let begun = Instant::now();
            act(number);
            begun.elapsed()
        })
        .collect()
}

#[test]
#[ignore = "a measurement"]
fn what_it_costs() {
    // On the disk of the build, since the folder of temporary files may be memory.
    let folder = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
    let path = folder.path().join("journal.db");
    let journal = open(&path).journal;
    for number in 0..100 {
        journal.tell(told(&format!("i{number}"), 1, Phase::Ready));
    }
    assert!(journal.flush());
    report("settle", timed(5_000, |generation| assert!(journal.settle(told("i50", generation + 1, Phase::Starting)))));
    report("tell", timed(5_000, |generation| journal.tell(told("i51", generation + 1, Phase::Ready))));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for number in 0..20 {
            let journal = journal.clone();
            scope.spawn(move || {
                for generation in 10_000..10_250 {
                    assert!(journal.settle(told(&format!("i{number}"), generation, Phase::Ready)));
                }
            });
        }
    });
    println!("20 threads: {:?} per settle", begun.elapsed() / 5_000);
    let begun = Instant::now();
    drop(journal);
    println!("the end: {:?}", begun.elapsed());
    let Begun { mut disk, content, .. } = Disk::begin(&path).unwrap();
    let row = content.rows.into_iter().next().unwrap();
    report("without the thread", timed(5_000, |_| assert!(disk.write([(&row.key, Some(&row))]).unwrap())));
}
