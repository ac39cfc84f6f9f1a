package fuseloop

// Sweep is for tests whose servers are killed.
var Sweep = sweep
