package fuzz

import (
	"context"
	"slices"

	"unlucky/linker"
)

// Shrink drops paddings of a failing plan for as long as what remains fails
// (delta debugging). Dropping a padding moves all that follows; merging it
// into the next one that survives keeps what follows that: both are offered.
// What it returns beside an error fails too, and is the best so far.
func Shrink(ctx context.Context, paddings []linker.Padding, ask func(context.Context, ...[]linker.Padding) ([]Answer, error)) ([]linker.Padding, error) {
	for size := (len(paddings) + 1) / 2; size > 0; size /= 2 {
		for changed := true; changed; {
			changed = false
			for first := 0; first < len(paddings); {
				last := min(first+size, len(paddings))
				offers := [][]linker.Padding{slices.Concat(paddings[:first], paddings[last:])}
				if last < len(paddings) {
					merged := slices.Clone(offers[0])
					for _, p := range paddings[first:last] {
						merged[first].Bytes += p.Bytes
					}
					offers = append(offers, merged)
				}
				answers, err := ask(ctx, offers...)
				if err != nil {
					return paddings, err
				}
				if i := slices.Index(answers, Fails); i >= 0 {
					paddings, changed = offers[i], true
				} else {
					first = last
				}
			}
			changed = changed && size == 1 // the last size until nothing changes
		}
	}
	return paddings, nil
}
