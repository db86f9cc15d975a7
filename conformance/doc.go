// Package conformance has what obx is held to: the suites that every executor and every repository passes, OBuilder's
// golden cases, kills and power cuts, the benchmarks with their floors, and the rules of who may import whom. It also
// starts the real things that tests need: registries, base images, file systems.
package conformance
