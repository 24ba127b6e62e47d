import type { ProjectId } from '../kit/ids.ts'
import { type Cents, centsToMoney, formatCents, type Money, sumCents } from '../kit/money.ts'
import type { MonthBill } from './bill.ts'
import type { ProjectLine } from './rate.ts'
import { FREE_TIER_DEDUCTION, FREE_TIER_DEDUCTION_SKU, FREE_TIER_SKU, productNameOf, resourceNameOf, skuOf, unitOf } from './wording.ts'

export type Consumption = {
  readonly value: Money
  readonly product_name: string
  readonly resource_name: string
  readonly sku: string
  readonly project_id: ProjectId
  readonly project_name: string
  readonly category_name: string
  readonly unit: string
  readonly billed_quantity: string
}

/** The quantity that goes with the unit: thousands of tokens, seconds, pages, minutes (control-plane.md 7.1). */
const billedQuantity = (line: ProjectLine): bigint =>
  line.meter === 'page' || line.meter === 'node_minute' ? line.billedUnits : line.billedUnits / 1_000n

/**
 * A bill as the vendor's consumption list has it: one line for each project and sku, whatever its price was and whether it came late;
 * before the free tier, which is a negative line of its own. They add up to what is owed.
 */
export const toConsumptions = (month: MonthBill, region: string): Consumption[] =>
  month.bill.projects.flatMap((project) => {
    const common = { project_id: project.projectId, project_name: month.projectNames[project.projectId] ?? '', category_name: 'AI' }
    const lines = [...groupBySku(project.lines, region)].map(([sku, own]): Consumption => {
      const [first] = own
      return {
        ...common,
        value: centsToMoney(sumCents(own.map(({ cents }) => cents))),
        product_name: productNameOf(first.meter),
        resource_name: resourceNameOf(first, region),
        sku,
        unit: unitOf(first.meter),
        billed_quantity: own.reduce((sum, line) => sum + billedQuantity(line), 0n).toString(),
      }
    })
    if (project.deductedCents === 0n) return lines
    return [
      ...lines,
      {
        ...common,
        value: centsToMoney(0n as Cents),
        product_name: 'Generative APIs Free Tier',
        resource_name: 'First 1M tokens for free',
        sku: FREE_TIER_SKU,
        unit: 'plan',
        billed_quantity: '1',
      },
      {
        ...common,
        value: centsToMoney((0n - project.deductedCents) as Cents),
        product_name: FREE_TIER_DEDUCTION,
        resource_name: FREE_TIER_DEDUCTION,
        sku: FREE_TIER_DEDUCTION_SKU,
        unit: 'currency',
        billed_quantity: formatCents((0n - project.deductedCents) as Cents),
      },
    ]
  })

const groupBySku = (lines: readonly ProjectLine[], region: string): Map<string, [ProjectLine, ...ProjectLine[]]> => {
  const bySku = new Map<string, [ProjectLine, ...ProjectLine[]]>()
  for (const line of lines) {
    const sku = skuOf(line, region)
    const known = bySku.get(sku)
    if (known === undefined) bySku.set(sku, [line])
    else known.push(line)
  }
  return bySku
}
