//! IMIX: UDP flows of NAT44 whose packets have one of three lengths, as simple IMIX has them.

use crate::function::NAT44;
use crate::rows::Rows;
use crate::traffic::{Traffic, shuffled};
use crate::uniform::{Case, shape, ways};
use nearstate_placement::Side;
use std::error::Error;

/// Of twelve packets seven are of 64 bytes, four of 594, one of 1518: frames in memory, with their
/// headers and without a checksum of Ethernet's; 362 bytes on average.
const LENGTHS: [usize; 12] = [64, 64, 64, 64, 64, 64, 64, 594, 594, 594, 594, 1518];
const FLOWS: u32 = 1 << 16;
const NAME: &str = "nat44_imix";

/// Measures them.
pub(crate) fn run(rows: &mut Rows) -> Result<(), Box<dyn Error>> {
    if !rows.report.wants(NAME) {
        return Ok(());
    }
    let directory = Rows::directory()?;
    let (chain, shape) = NAT44.chain(FLOWS, shape(directory.path().join(NAME)))?;
    let mut traffic = Traffic::default();
    for flow in shuffled(FLOWS) {
        let len = LENGTHS[flow as usize % LENGTHS.len()];
        traffic.push(Side::Inside, &NAT44.packet(flow, len));
    }
    let count = if rows.report.quick() { 1 << 17 } else { 1 << 20 };
    let case = Case { name: NAME.to_owned(), chain, shape, traffic, count, apart: false };
    println!("    IMIX: 7:4:1 frames of 64, 594 and 1518 bytes, headers included, 64 K flows");
    let measured = ways(rows, &case)?;
    rows.goodput(NAME, &measured);
    Ok(())
}
