//! Two appends to one follower under way at a time, so that the news of a commit, or one entry,
//! does not hold up the next entry for a round trip.
//!
//! **Acknowledgements stay honest.** The library takes an answer for an answer to every append
//! whose entries end where the answer says or before, and the newest of these is when the follower
//! was heard: a lease is made of that. An append without entries ends where the one before it did.
//! If both are under way, an answer to the first would be taken for an answer to the second, which
//! the follower may never have seen. So an answer is held back while another append of the same end
//! is under way, and that one's answer is given for both. Appends are asked for only while an
//! answer is waited for, so none can come between an answer and what is made of it.
//!
//! Nothing here names the library or a socket.

use crate::transport::lock;
use futures::{Stream, StreamExt, stream};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

/// Appends to one follower that may be under way.
const PIPELINE: usize = 2;

/// The answers to what is sent, each with the end of its append. `sent` gives ends and answers to
/// come; after the first answer that is not `whole` the rest is void.
pub(super) fn pipelined<'s, E, A, F>(
    sent: impl Stream<Item = (E, F)> + Send + 's,
    whole: fn(&A, &E) -> bool,
) -> impl Stream<Item = (A, E)> + Send + 's
where
    E: PartialEq + Clone + Send + 's,
    A: Send + 's,
    F: Future<Output = A> + Send + 's,
{
    let under_way = Arc::new(Mutex::new(VecDeque::new()));
    let noted = under_way.clone();
    let answers = sent
        .map(move |(end, answer)| {
            lock(&noted).push_back(end.clone());
            async move { (answer.await, end) }
        })
        .buffered(PIPELINE);
    stream::unfold((Some(Box::pin(answers)), under_way), move |(answers, under_way)| async move {
        let mut answers = answers?;
        loop {
            let (answer, end) = answers.next().await?;
            let whole = whole(&answer, &end);
            let held = {
                let mut ends = lock(&under_way);
                ends.pop_front();
                whole && ends.front() == Some(&end)
            };
            if !held {
                return Some(((answer, end), (whole.then_some(answers), under_way)));
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use tokio::sync::oneshot;

    type Answer = Result<u32, oneshot::error::RecvError>;

    fn whole(answer: &Answer, end: &u32) -> bool {
        *answer == Ok(*end)
    }

    /// Appends that end so, and what answers them.
    fn appends<const N: usize>(
        ends: [u32; N],
    ) -> ([Option<oneshot::Sender<u32>>; N], impl Stream<Item = (Answer, u32)> + Unpin) {
        let (mut senders, mut sent) = ([const { None }; N], Vec::new());
        for (sender, end) in senders.iter_mut().zip(ends) {
            let (answer, receiver) = oneshot::channel();
            *sender = Some(answer);
            sent.push((end, receiver));
        }
        (senders, Box::pin(pipelined(stream::iter(sent), whole)))
    }

    #[test]
    fn an_answer_does_not_stand_for_a_later_append_of_the_same_end() {
        let ([first, again, next], mut answers) = appends([10, 10, 11]);
        first.unwrap().send(10).unwrap();
        assert_eq!(answers.next().now_or_never(), None, "the second is not answered");
        again.unwrap().send(10).unwrap();
        assert_eq!(answers.next().now_or_never(), Some(Some((Ok(10), 10))), "one for both");
        next.unwrap().send(11).unwrap();
        assert_eq!(answers.next().now_or_never(), Some(Some((Ok(11), 11))));
        assert_eq!(answers.next().now_or_never(), Some(None));
    }

    #[test]
    fn appends_of_different_ends_are_answered_one_by_one() {
        let ([first, second], mut answers) = appends([10, 11]);
        first.unwrap().send(10).unwrap();
        assert_eq!(answers.next().now_or_never(), Some(Some((Ok(10), 10))));
        second.unwrap().send(11).unwrap();
        assert_eq!(answers.next().now_or_never(), Some(Some((Ok(11), 11))));
    }

    #[test]
    fn after_less_than_all_the_rest_is_void() {
        let ([first, second, _third], mut answers) = appends([10, 10, 11]);
        first.unwrap().send(9).unwrap();
        second.unwrap().send(10).unwrap();
        assert_eq!(answers.next().now_or_never(), Some(Some((Ok(9), 10))));
        assert_eq!(answers.next().now_or_never(), Some(None));
    }
}
