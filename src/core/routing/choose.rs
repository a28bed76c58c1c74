//! In which order candidates are tried. Chance comes from outside.

use super::Server;

/// The order in which to try the candidates: the less used of two random ones, the other, then the rest
/// by use. `sessions` tells how many sessions a server has, `warm` how much of its share one that has just come
/// back is to get, in percent; `draws` are three random numbers.
#[must_use]
pub fn choose<'a>(
    candidates: &[&'a Server],
    sessions: &dyn Fn(&Server) -> usize,
    warm: &dyn Fn(&Server) -> u8,
    draws: [usize; 3],
) -> Vec<&'a Server> {
    let [first, second, chance] = draws;
    let mut rest: Vec<(bool, usize, &Server)> = candidates
        .iter()
        .map(|server| {
            let cold = chance % 100 >= usize::from(warm(server));
            (cold, sessions(server), *server)
        })
        .collect();
    let mut pair = Vec::with_capacity(rest.len());
    for draw in [first, second] {
        if !rest.is_empty() {
            pair.push(rest.remove(draw % rest.len()));
        }
    }
    pair.sort_by_key(|(cold, used, _)| (*cold, *used));
    rest.sort_by_key(|(cold, used, _)| (*cold, *used));
    pair.into_iter().chain(rest).map(|(.., server)| server).collect()
}
