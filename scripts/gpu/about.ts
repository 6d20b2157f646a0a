/**
 * Says on which GPU, with which driver and of which commit the bundle runs; without the device, what is missing, and exits
 * with 1.
 */
import { device, gpuCircumstances } from "../../bench/gpu-machine.ts"

try {
  const { gpu, driver, date, commit } = gpuCircumstances(device())
  console.log(`${gpu}, driver ${driver}, ${date}, commit ${commit}`)
} catch (error) {
  console.log((error as Error).message)
  process.exitCode = 1
}
