// Selection of neurons from score tables: algorithms on spans, free of Python.
//
// Every result is defined to the last bit, so that an independent implementation can be held to it: sums run over
// groups in row order, divisions and subtractions are single IEEE double operations (build with -ffp-contract=off),
// and rankings are those of a stable descending sort. Threads share out columns and never change a result.

#pragma once

#include "candidates.hpp"  // candidates(): pools in one sweep over tables
#include "sweep.hpp"       // top_k()
#include "threads.hpp"     // share_out()
#include "top_k.hpp"       // TopK: the best of a stream
#include "z_scores.hpp"    // group_z(), z_scores(): candidates against all groups
