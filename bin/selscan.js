#!/usr/bin/env node
import * as nodeModule from "node:module"

// From its second start on, Node 22 takes the code that it compiled from a cache.
nodeModule.enableCompileCache?.()
const { main } = await import("../dist/cli/main.js")

process.exitCode = await main(process.argv)
