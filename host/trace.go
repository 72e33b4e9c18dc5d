package host

import "context"

type traceKey struct{}

// WithTrace has each program that is run under the context told to trace before it
// starts, with its folder, "" for the current one. It may be called at the same time
// by many.
func WithTrace(ctx context.Context, trace func(dir string, argv []string)) context.Context {
	return context.WithValue(ctx, traceKey{}, trace)
}

// Trace tells of a program that is about to be run.
func Trace(ctx context.Context, dir string, argv []string) {
	if trace, ok := ctx.Value(traceKey{}).(func(string, []string)); ok {
		trace(dir, argv)
	}
}
