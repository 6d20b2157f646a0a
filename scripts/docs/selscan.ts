/** The command `selscan` of this repository, as examples call it. */
import { main } from "../../lib/cli/main.ts"

process.exitCode = await main(process.argv)
