//! A hierarchical timer wheel over numbered timers: the hands of the clock of a shard's owner.
//!
//! Four wheels of 64 places; a place of the first is one tick wide, of the next one 64, and so on.
//! A timer lies in the place that its time falls into, in the finest wheel that reaches so far;
//! when its place comes up it sinks into a finer one or is due. Lists are threaded through an
//! array by timer number, so arming, disarming and renumbering cost the same whatever the number
//! of timers, and nothing is allocated.
//!
//! *Lazy.* The wheel remembers no times. When a timer's place comes up, its owner says when it is
//! due *now*; what was seen meanwhile has moved on and is armed again. So a packet never touches
//! the wheel.
//!
//! *Bounded.* One call handles at most as many timers as it is allowed to, however many come up at
//! once; the rest waits for the next call. It reads no clock, and never forgets a timer.

use crate::word_array::WordArray;

/// Places of one wheel.
const PLACES: usize = 64;
const PLACE_BITS: u32 = PLACES.trailing_zeros();
/// Wheels, from fine to coarse.
const WHEELS: usize = 4;
/// The list of timers whose place has come up.
const CAME_UP: u32 = (WHEELS * PLACES) as u32;
/// Marks the beginning of a list where a timer's number would stand.
const LIST: u32 = 1 << 31;
/// How far ahead a timer is placed at most; what is due later is placed again then.
const FAR_TICKS: u64 = (PLACES as u64 - 1) << (PLACE_BITS * (WHEELS as u32 - 1));

/// Most timers that a wheel can have.
pub const TIMERS_MAX: usize = LIST as usize - 1;

/// What one call came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turned {
    /// Timers that were looked at.
    pub steps: u32,
    /// Those of them that were due.
    pub due: u32,
    /// Whether it stopped because it had done all that it may at a time.
    pub is_more: bool,
}

/// See the module's text. Timers are numbers below what it was made for.
#[derive(Debug)]
pub struct TimerWheel {
    /// For each timer, in the low half: what follows it in its list, a timer's number plus 1, or 0
    /// at the end. In the high half: what stands before it, a timer's number plus 1, or [`LIST`]
    /// and the list's number; 0 if the timer is not armed.
    links: WordArray,
    heads: [u32; WHEELS * PLACES + 1],
    /// For each wheel: which places hold timers.
    taken: [u64; WHEELS],
    /// Places that begin before or at this tick have come up.
    tick: u64,
    armed: u32,
}

impl TimerWheel {
    /// A wheel for timers 0 to `timers - 1`, none of them armed.
    ///
    /// # Panics
    /// If there are more than [`TIMERS_MAX`], or no address space for their links.
    #[must_use]
    pub fn new(timers: usize) -> Self {
        assert!(timers <= TIMERS_MAX, "at most {TIMERS_MAX} timers, not {timers}");
        Self {
            links: WordArray::zeroed(timers).expect("address space for the links of timers"),
            heads: [0; WHEELS * PLACES + 1],
            taken: [0; WHEELS],
            tick: 0,
            armed: 0,
        }
    }

    /// Timers that are armed.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.armed
    }

    /// Whether no timer is armed.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.armed == 0
    }

    /// Whether this timer is armed.
    #[must_use]
    pub fn is_armed(&self, timer: u32) -> bool {
        self.before(timer) != 0
    }

    /// Draws what is known of a timer near.
    #[inline]
    pub(crate) fn prefetch(&self, timer: u32) {
        self.links.prefetch(timer);
    }

    fn next(&self, timer: u32) -> u32 {
        self.links.get(timer) as u32
    }

    fn before(&self, timer: u32) -> u32 {
        (self.links.get(timer) >> 32) as u32
    }

    fn place_before(&mut self, timer: u32, before: u32) {
        self.set_links(timer, before, self.next(timer));
    }

    fn set_links(&mut self, timer: u32, before: u32, next: u32) {
        self.links.set(timer, u64::from(before) << 32 | u64::from(next));
    }

    /// Takes a timer's links away and gives them, before and next.
    fn take_links(&mut self, timer: u32) -> (u32, u32) {
        let links = (self.before(timer), self.next(timer));
        self.set_links(timer, 0, 0);
        links
    }

    /// Arms a timer for a tick, or arms it anew. `now` is the tick of now, if it is known: a wheel
    /// that was empty goes on from there.
    pub fn arm(&mut self, timer: u32, due: u64, now: u64) {
        self.disarm(timer);
        if self.armed == 0 {
            self.tick = self.tick.max(now);
        }
        let list = self.list_for(due);
        self.link(timer, list);
    }

    /// Disarms a timer; no matter if it is not armed.
    pub fn disarm(&mut self, timer: u32) {
        if !self.is_armed(timer) {
            return;
        }
        let (before, next) = self.take_links(timer);
        self.set_next(before, next);
        if next != 0 {
            self.place_before(next - 1, before);
        }
        self.armed -= 1;
    }

    /// Gives a timer another number, which must be free.
    ///
    /// # Panics
    /// If that number is of an armed timer.
    pub fn renumber(&mut self, from: u32, to: u32) {
        assert!(!self.is_armed(to), "timer {to} is armed");
        if !self.is_armed(from) {
            return;
        }
        let (before, next) = self.take_links(from);
        self.set_links(to, before, next);
        self.set_next(before, to + 1);
        if next != 0 {
            self.place_before(next - 1, to + 1);
        }
    }

    /// Disarms all timers.
    pub fn clear(&mut self) {
        if self.armed > 0 {
            *self = Self { tick: self.tick, ..Self::new(self.links.len()) };
        }
    }

    /// Turns the wheel to the tick `now`, and looks at no more than `steps_max` timers on the way.
    /// `due_at` says when a timer is due; one that is due is disarmed and given to `due`.
    pub fn turn(
        &mut self,
        now: u64,
        steps_max: u32,
        mut due_at: impl FnMut(u32) -> u64,
        mut due: impl FnMut(u32),
    ) -> Turned {
        let mut turned = Turned::default();
        loop {
            while self.heads[CAME_UP as usize] != 0 {
                if turned.steps == steps_max {
                    turned.is_more = true;
                    return turned;
                }
                turned.steps += 1;
                let timer = self.heads[CAME_UP as usize] - 1;
                self.disarm(timer);
                let at = due_at(timer);
                if at <= now {
                    turned.due += 1;
                    due(timer);
                } else {
                    let list = self.list_for(at);
                    self.link(timer, list);
                }
            }
            match self.next_place() {
                Some((list, begins)) if begins <= now => {
                    self.tick = self.tick.max(begins);
                    self.come_up(list);
                }
                _ => {
                    self.tick = self.tick.max(now);
                    return turned;
                }
            }
        }
    }

    /// The list of the place that a timer due at this tick belongs into.
    fn list_for(&self, due: u64) -> u32 {
        if due <= self.tick {
            return CAME_UP;
        }
        let due = due.min(self.tick + FAR_TICKS);
        let differ = u64::BITS - (due ^ self.tick).leading_zeros();
        let wheel = ((differ - 1) / PLACE_BITS).min(WHEELS as u32 - 1);
        let place = (due >> (wheel * PLACE_BITS)) % PLACES as u64;
        wheel * PLACES as u32 + place as u32
    }

    fn link(&mut self, timer: u32, list: u32) {
        debug_assert!(!self.is_armed(timer));
        let first = core::mem::replace(&mut self.heads[list as usize], timer + 1);
        self.set_links(timer, LIST | list, first);
        if first != 0 {
            self.place_before(first - 1, timer + 1);
        }
        if list != CAME_UP {
            self.taken[list as usize / PLACES] |= 1 << (list as usize % PLACES);
        }
        self.armed += 1;
    }

    /// What stands before, a timer or a list, is followed by `next` from now on.
    fn set_next(&mut self, before: u32, next: u32) {
        if before & LIST == 0 {
            let timer = before - 1;
            self.set_links(timer, self.before(timer), next);
            return;
        }
        let list = (before & !LIST) as usize;
        self.heads[list] = next;
        if next == 0 && list != CAME_UP as usize {
            self.taken[list / PLACES] &= !(1 << (list % PLACES));
        }
    }

    /// The place that comes up next, and at which tick it begins. The finest wheel that holds a
    /// timer has it: what lies in a coarser one differs from now in a higher digit.
    fn next_place(&self) -> Option<(u32, u64)> {
        let wheel = self.taken.iter().position(|taken| *taken != 0)? as u32;
        let shift = wheel * PLACE_BITS;
        let here = self.tick >> shift;
        let turn = (here % PLACES as u64) as u32;
        let ahead = self.taken[wheel as usize].rotate_right(turn).trailing_zeros();
        let place = (turn + ahead) % PLACES as u32;
        Some((wheel * PLACES as u32 + place, (here + u64::from(ahead)) << shift))
    }

    /// Moves a whole list to those that came up, of which there are none.
    fn come_up(&mut self, list: u32) {
        debug_assert!(self.heads[CAME_UP as usize] == 0);
        let first = core::mem::take(&mut self.heads[list as usize]);
        self.taken[list as usize / PLACES] &= !(1 << (list as usize % PLACES));
        self.heads[CAME_UP as usize] = first;
        if first != 0 {
            self.place_before(first - 1, LIST | CAME_UP);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const TIMERS: u32 = 24;

    #[derive(Clone, Debug)]
    enum Step {
        Arm {
            timer: u32,
            in_ticks: u64,
        },
        /// What the timer stands for was seen: it is due later, and the wheel is not told.
        Refresh {
            timer: u32,
            in_ticks: u64,
        },
        Disarm {
            timer: u32,
        },
        Renumber {
            from: u32,
            to: u32,
        },
        Turn {
            ticks: u64,
            steps_max: u32,
        },
    }

    fn ticks() -> impl Strategy<Value = u64> {
        prop_oneof![0..70_u64, 0..5000_u64, 0..300_000_u64, 0..40_000_000_u64]
    }

    fn step() -> impl Strategy<Value = Step> {
        let timer = 0..TIMERS;
        prop_oneof![
            3 => (timer.clone(), ticks())
                .prop_map(|(timer, in_ticks)| Step::Arm { timer, in_ticks }),
            1 => (timer.clone(), ticks())
                .prop_map(|(timer, in_ticks)| Step::Refresh { timer, in_ticks }),
            1 => timer.clone().prop_map(|timer| Step::Disarm { timer }),
            1 => (timer.clone(), timer).prop_map(|(from, to)| Step::Renumber { from, to }),
            3 => (ticks(), 1..40_u32)
                .prop_map(|(ticks, steps_max)| Step::Turn { ticks, steps_max }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

        /// The model: a map from timers to their ticks. What is due is what the map says, no more
        /// and no less, once the wheel has had steps enough.
        #[test]
        fn a_wheel_is_a_map_of_times(
            start in prop_oneof![Just(0), 0..1_u64 << 40],
            steps in prop::collection::vec(step(), 1..120),
        ) {
            let mut wheel = TimerWheel::new(TIMERS as usize);
            let mut model: BTreeMap<u32, u64> = BTreeMap::new();
            let mut now = start;
            for step in steps {
                match step {
                    Step::Arm { timer, in_ticks } => {
                        wheel.arm(timer, now + in_ticks, now);
                        model.insert(timer, now + in_ticks);
                    }
                    Step::Refresh { timer, in_ticks } => {
                        model.entry(timer).and_modify(|due| *due = (*due).max(now + in_ticks));
                    }
                    Step::Disarm { timer } => {
                        wheel.disarm(timer);
                        model.remove(&timer);
                    }
                    Step::Renumber { from, to } => if !model.contains_key(&to) {
                        wheel.renumber(from, to);
                        model.remove(&from).map(|due| model.insert(to, due));
                    },
                    Step::Turn { ticks, steps_max } => {
                        now += ticks;
                        let mut due = vec![];
                        let mut calls = 0;
                        loop {
                            let turned =
                                wheel.turn(now, steps_max, |timer| model[&timer], |t| due.push(t));
                            prop_assert!(turned.steps <= steps_max && turned.due <= turned.steps);
                            calls += 1;
                            prop_assert!(calls < 500, "it ends");
                            if !turned.is_more { break; }
                        }
                        due.sort_unstable();
                        let expected: Vec<u32> =
                            model.iter().filter(|(_, at)| **at <= now).map(|(t, _)| *t).collect();
                        prop_assert_eq!(due, expected);
                        model.retain(|_, at| *at > now);
                    }
                }
                prop_assert_eq!(wheel.len() as usize, model.len());
                for timer in 0..TIMERS {
                    prop_assert_eq!(wheel.is_armed(timer), model.contains_key(&timer));
                }
            }
        }
    }

    #[test]
    fn a_million_timers_of_one_moment_cost_a_few_steps_each_and_no_call_more_than_it_may() {
        const MANY: u32 = 1_000_000;
        const AT_ONCE: u32 = 1024;
        let mut wheel = TimerWheel::new(MANY as usize);
        let (now, due) = (1 << 34, (1 << 34) + 4_700);
        (0..MANY).for_each(|timer| wheel.arm(timer, due, now));
        let (mut steps, mut fired, mut calls) = (0_u64, 0, 0_u64);
        for at in now..=due {
            loop {
                let turned = wheel.turn(at, AT_ONCE, |_| due, |_| fired += 1);
                assert!(turned.steps <= AT_ONCE);
                steps += u64::from(turned.steps);
                calls += 1;
                if !turned.is_more {
                    break;
                }
            }
            assert_eq!(fired, if at == due { MANY } else { 0 }, "at {at}");
        }
        // One step for each wheel that a timer sinks through, and one at the end.
        assert!(steps <= u64::from(MANY) * WHEELS as u64, "{steps} steps");
        assert!(calls <= 4_701 + steps / u64::from(AT_ONCE), "{calls} calls");
    }

    #[test]
    fn a_wheel_that_stood_still_for_long_catches_up_without_turning_through_every_tick() {
        let mut wheel = TimerWheel::new(1000);
        (0..1000).for_each(|timer| wheel.arm(timer, 1000 + u64::from(timer) * 97, 1000));
        let mut fired = 0;
        let turned =
            wheel.turn(1 << 50, u32::MAX, |timer| 1000 + u64::from(timer) * 97, |_| fired += 1);
        assert_eq!((fired, turned.due, turned.steps), (1000, 1000, 1000));
    }
}
